"""Engines: what runs a network's file. An opened file is a function from one image to inverse depth."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.export.openvino import core
from mde.jetson.builder import BuildError, load_tensorrt, misfit, read_record
from mde.jetson.cudart import CudaError, load_cuda
from mde.jetson.engine import Engine as TensorRtEngine
from mde.models import load_model

Engine = Callable[[np.ndarray], np.ndarray]


def open_engine(engine: str, path: Path, threads: int) -> Engine:
    """A function that runs the file on `threads` CPU threads: an image as the file takes it -> float32 (1, 1, H, W).

    engine  a name in ENGINES, which also says what files it reads; "pytorch" takes uint8 (1, H, W, 3)

    Computes in the file's own precision. MdeError for another engine or suffix, a package that is not installed, and a
    file that is missing or that the engine refuses.
    """
    check_engines([engine])
    suffixes, opener = ENGINES[engine]
    if path.suffix not in suffixes:
        raise MdeError(f"{path}: {engine} reads {' or '.join(suffixes)}; export the network again")
    if not path.is_file():
        raise MdeError(f"{path}: no such file; export the network first")
    try:
        return opener(path, threads)
    except MdeError:
        raise
    except Exception as error:  # the engines' errors have no class in common
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{path}: {engine} cannot open it ({reason}); export the network again") from error


def check_engines(engines: Sequence[str]) -> None:
    """MdeError names the first engine that is unknown."""
    for engine in engines:
        if engine not in ENGINES:
            raise MdeError(f"engine {engine}: unknown; choose from {', '.join(ENGINES)}")


def engine_version(engine: str) -> str:
    """Of the library that runs it."""
    return version({"pytorch": "torch", "litert": "ai-edge-litert"}.get(engine, engine))


def graph_engine(graph: ImageGraph, threads: int) -> Engine:
    """`graph`, in PyTorch on the CPU, as an engine that is opened already."""
    graph.eval()

    def run(image: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)  # of the whole process, hence set anew at each call
        with torch.inference_mode():
            return graph(torch.from_numpy(image)).numpy()

    return run


def _open_pytorch(path: Path, threads: int) -> Engine:
    model = load_model(path)
    return graph_engine(ImageGraph(deployable(model), model.mean, model.std), threads)


def _open_onnxruntime(path: Path, threads: int) -> Engine:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle workers would otherwise spin for a while after each call, in the time of whatever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _open_openvino(path: Path, threads: int) -> Engine:
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the CPU plugin takes bfloat16 by itself where the processor has it
    }
    compiled = core().compile_model(path, "CPU", options)
    return lambda image: compiled(image)[0]


def _open_litert(path: Path, threads: int) -> Engine:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MdeError("engine litert: is not installed; pip install -e '.[tflite]'") from error
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken, image)
        interpreter.invoke()
        return interpreter.get_tensor(given)

    return run


def _open_tensorrt(path: Path, _threads: int) -> Engine:
    try:
        trt = load_tensorrt((read_record(str(path))["library"],))
        if (reason := misfit(trt, str(path))) is not None:
            raise MdeError(reason)
        cuda = load_cuda()  # before the library looks for a GPU, whose absence it calls a bad file
        return TensorRtEngine(trt, cuda, str(path))
    except (BuildError, CudaError) as error:
        raise MdeError(str(error)) from error


# Name -> the files that it reads, and what opens them.
ENGINES: dict[str, tuple[tuple[str, ...], Callable[[Path, int], Engine]]] = {
    "pytorch": ((".safetensors",), _open_pytorch),
    "onnxruntime": ((".onnx",), _open_onnxruntime),
    "openvino": ((".xml", ".onnx"), _open_openvino),
    "litert": ((".tflite",), _open_litert),
    "tensorrt": ((".engine",), _open_tensorrt),
}
