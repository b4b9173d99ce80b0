"""OpenVINO, imported quietly, and its one Core."""

import functools
import sys

# Merely importing openvino reports the import to its vendor, from a child process that waits on the network, unless a
# file in the home directory forbids it. Without this package openvino falls back to a stub that sends nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402


@functools.cache
def core() -> openvino.Core:
    """The process's only Core. Each one's CPU plugin gives the thread a stack for signal handlers and, when it goes,
    puts back the one before: two that go in the order they came leave a stack that is no longer mapped, and the next
    signal that Python handles (a child that ended, Ctrl-C) kills the process.
    """
    return openvino.Core()
