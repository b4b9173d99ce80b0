"""TensorRT, and TensorRT-RTX, whose engines run on no Jetson. Both build here, and run on a GPU only."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mde.cache import cache_folder
from mde.engines.engine import PROFILER_WARMUP, Engine, Input, LayerTime, Opened
from mde.engines.onnxruntime import open_in_floats
from mde.errors import MdeError
from mde.jetson.builder import LIBRARIES, BuildError, cached_engine, load_tensorrt, misfit, read_record
from mde.jetson.cudart import CudaError, load_cuda, present_device
from mde.jetson.engine import Engine as TensorRtEngine

if TYPE_CHECKING:
    from mde.engines.request import Request


def tensorrt_engine(path: Path) -> TensorRtEngine:
    """MdeError when the file is not for this GPU and library, or there is no GPU."""
    try:
        trt = load_tensorrt((read_record(str(path))["library"],))
        if (reason := misfit(trt, str(path))) is not None:
            raise MdeError(reason)
        cuda = load_cuda()  # before the library looks for a GPU, whose absence it calls a bad file
        return TensorRtEngine(trt, cuda, str(path))
    except (BuildError, CudaError) as error:
        raise MdeError(str(error)) from error


def _open(path: Path, threads: int) -> Opened:
    engine = tensorrt_engine(path)
    return engine, [Input(engine.input.shape, engine.input.dtype.name)]


def _layer_times(path: Path, image: np.ndarray, runs: int, _threads: int) -> list[LayerTime]:
    engine = tensorrt_engine(path)
    engine(image)
    for _ in range(PROFILER_WARMUP):
        engine.execute()
    times = engine.layer_times(runs)
    engine.close()
    return [LayerTime(name, "", ms) for name, ms in times.items()]


def _write(request: "Request", path: Path) -> None:
    from mde.engines.request import typed_onnx

    names = LIBRARIES if request.library == "auto" else (request.library,)
    try:
        trt = load_tensorrt(names)
        cache = cache_folder() / "engines"
        cache.mkdir(parents=True, exist_ok=True)
        described = asdict(request.describe(TENSORRT.name))
        graph = str(typed_onnx(request))
        cached_engine(str(cache), trt, graph, str(path), request.precision, described, log=lambda _: None)
    except BuildError as error:
        raise MdeError(f"target=tensorrt: {error}") from error


def _library(path: Path) -> tuple[str, str]:
    built = read_record(str(path))
    return built["library"], built["library_version"]


def _library_note(library: str) -> str:
    return "an RTX engine does not run on a Jetson, where the bundle builds its own" * (library == LIBRARIES[1])


TENSORRT = Engine(
    "tensorrt",
    (".engine",),
    "tensorrt",
    _open,
    {"fp32": _write, "fp16": _write, "int8": _write},
    profiler=_layer_times,
    describes=True,
    runs_here=lambda: present_device()["device"] is not None,
    # Its weights take 8 bits in INT8, which ONNX Runtime's integer kernels add up wrong on an x86 without VNNI.
    stand_in=open_in_floats,
    library=_library,
    library_note=_library_note,
)
