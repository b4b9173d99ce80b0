"""Scripts run as `python script.py ...` runs them, each in a process forked from one that has the slow imports behind
it: half of a short run's time. What a run prints, its exit status, directory and environment are its own; what must be
a new interpreter (launchers, processes that are killed) calls subprocess itself."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

SLOW = [
    "lightning.pytorch.loggers",
    "matplotlib.pyplot",
    "mde.deploy.compare",
    "mde.deploy.predict.run",
    "mde.deploy.run",
    "mde.pruning.run",
    "mde.training",
    "onnxruntime.quantization",
    "onnxscript",
    "openvino",
    "torch.onnx._internal.exporter._core",
    "wandb",
]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: what is forked must have no threads
FORKSERVER = multiprocessing.get_context("forkserver")


def run_script(
    script: Path | str, arguments: list[str], directory: Path, environment: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Runs the script, or "-m module", to its end. Raises TimeoutExpired."""
    FORKSERVER.set_forkserver_preload(SLOW)
    command = [str(script), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("out", "err")]
        process = FORKSERVER.Process(target=_run, args=(command, str(directory), dict(environment), files))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (Path(file).read_text() for file in files)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _run(command: list[str], directory: str, environment: dict[str, str], files: list[str]) -> None:
    for stream, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    multiprocessing.set_start_method(None, force=True)  # what the system's is, not the one this process came by
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    # What the imports left to be done at exit is the common process's to do: W&B would remove every run's folder.
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    sys.argv = command
    try:
        if command[0].startswith("-m "):
            runpy.run_module(command[0].removeprefix("-m "), run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(command[0]).resolve().parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out, and W&B finishes its files in
