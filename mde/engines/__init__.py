"""Engines: what runs a network's file. Each has a file here, which writes, opens and profiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mde.engines.engine import Engine, Input, LayerTime, OpenFile, Run, as_map
from mde.engines.litert import LITERT
from mde.engines.onnxruntime import ONNXRUNTIME
from mde.engines.openvino import OPENVINO, OPENVINO_DEFAULT, export_openvino
from mde.engines.pytorch import PYTORCH
from mde.engines.tensorrt import TENSORRT
from mde.errors import MdeError

if TYPE_CHECKING:
    from mde.engines.request import Request

__all__ = [
    "ENGINES",
    "Engine",
    "Input",
    "LayerTime",
    "OpenFile",
    "Run",
    "as_map",
    "check_engines",
    "check_target",
    "export_openvino",
    "layer_times",
    "open_engine",
    "targets",
    "write_target",
]

# By name; a new one is a file here and a line.
ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (PYTORCH, ONNXRUNTIME, OPENVINO, OPENVINO_DEFAULT, LITERT, TENSORRT)
}


def targets() -> list[str]:
    """The names of those that write files."""
    return [name for name, engine in ENGINES.items() if engine.writers]


def check_engines(engines: Sequence[str]) -> None:
    """MdeError names the first engine that is unknown."""
    for engine in engines:
        if engine not in ENGINES:
            raise MdeError(f"engine {engine}: unknown; choose from {', '.join(ENGINES)}")


def check_target(target: str, precision: str) -> None:
    """MdeError when `target` is unknown or computes nothing in `precision`."""
    if target not in targets():
        raise MdeError(f"target.name={target}: unknown; choose from {', '.join(targets())}")
    if precision not in ENGINES[target].writers:
        offered = ", ".join(name for name, engine in ENGINES.items() if precision in engine.writers)
        raise MdeError(f"target={target}: computes nothing in {precision}; choose one of {offered}")


def write_target(target: str, request: "Request", path: Path) -> None:
    """Writes the file that `target` runs to `path`, and its description beside it.

    MdeError when the target has no such precision or is not installed, and what the exporters refuse.
    """
    from mde.engines.description import write_description

    check_target(target, request.precision)
    ENGINES[target].writers[request.precision](request, path)
    if not ENGINES[target].describes:
        write_description(path, request.describe(target))


def open_engine(engine: str, path: Path, threads: int) -> OpenFile:
    """The file in an engine of ENGINES, see `Engine.open`. MdeError for another one too."""
    check_engines([engine])
    return ENGINES[engine].open(path, threads)


def layer_times(engine: str, path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    """The layers of the file in the order in which they run, means over `runs` calls after a few others.

    image  as the file takes it

    Opens the file anew: an engine that is profiled is not one that is measured; timing every layer slows a network
    down, so compare layers with each other alone. MdeError for an engine without a profiler.
    """
    check_engines([engine])
    profiler = ENGINES[engine].profiler
    if profiler is None:
        having = ", ".join(name for name, other in ENGINES.items() if other.profiler)
        raise MdeError(f"{path}: {ENGINES[engine].no_profile}; choose from {having}")
    return profiler(path, image, runs, threads)
