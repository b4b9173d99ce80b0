"""Engines: what runs a network's file. An opened file is a function from one image to inverse depth.

Whatever a library raises, when it opens a file or when it runs it, becomes one line that names the file.

Each library is imported by what needs it: a process that runs one engine, whose memory `mde.engine_memory` measures,
holds no other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mde.errors import MdeError
from mde.jetson.builder import BuildError, load_tensorrt, misfit, read_record
from mde.jetson.cudart import CudaError, load_cuda
from mde.jetson.engine import Engine as TensorRtEngine

if TYPE_CHECKING:
    import onnxruntime
    import openvino
    from torch import nn

Engine = Callable[[np.ndarray], np.ndarray]
OPENVINO_DEFAULT = "openvino_default"  # OpenVINO that is not held to a file's own precision


@dataclass(frozen=True)
class Input:
    """shape  a side is None where any length will do
    dtype  as NumPy calls it, or the engine where NumPy has none
    """

    shape: tuple[int | None, ...]
    dtype: str

    def takes(self, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether it takes an image of this shape and type."""
        sides = zip(self.shape, shape, strict=False)
        return dtype == self.dtype and len(shape) == len(self.shape) and all(a in (None, b) for a, b in sides)

    def __str__(self) -> str:
        return f"[{','.join('?' if side is None else str(side) for side in self.shape)}] of {self.dtype}"


@dataclass(frozen=True)
class OpenFile:
    """An opened file, an Engine.

    name    of what runs it
    inputs  of the file; None in PyTorch, which finds out when it runs
    """

    path: Path
    name: str
    run: Engine
    inputs: list[Input] | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        try:
            output = self.run(image)
        except Exception as error:  # the engines' errors have no class in common
            raise MdeError(
                f"{self.path}: {self.name} cannot run it on {image.dtype} {list(image.shape)} ({_reason(error)}); does "
                "its description say what it takes? Else export the network again"
            ) from error
        return as_map(np.asarray(output, np.float32))


def open_engine(engine: str, path: Path, threads: int) -> OpenFile:
    """A function that runs the file on `threads` CPU threads: an image as the file takes it -> float32 (1, 1, H, W).

    engine  a name in ENGINES, which also says what files it reads; "pytorch" takes uint8 (1, H, W, 3)

    Computes in the file's own precision, OPENVINO_DEFAULT alone in what OpenVINO chooses. MdeError for another engine
    or suffix, a package that is not installed, and a file that is missing or that the engine refuses; from the
    function, for an image that it refuses.
    """
    check_engines([engine])
    suffixes, opener = ENGINES[engine]
    if path.suffix not in suffixes:
        raise MdeError(f"{path}: {engine} reads {' or '.join(suffixes)}; export the network again")
    if not path.is_file():
        raise MdeError(f"{path}: no such file; export the network first")
    try:
        return OpenFile(path, engine, *opener(path, threads))
    except MdeError:
        raise
    except Exception as error:
        raise MdeError(f"{path}: {engine} cannot open it ({_reason(error)}); export the network again") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def as_map(output: np.ndarray) -> np.ndarray:
    """One map as (1, 1, H, W), wherever its axes of length 1 are: channels first, last, or none. What is no single map
    stays as it is.
    """
    sides = [side for side in output.shape if side != 1]
    return output.reshape(1, 1, *sides) if len(sides) == 2 else output


def check_engines(engines: Sequence[str]) -> None:
    """MdeError names the first engine that is unknown."""
    for engine in engines:
        if engine not in ENGINES:
            raise MdeError(f"engine {engine}: unknown; choose from {', '.join(ENGINES)}")


def engine_version(engine: str) -> str:
    """Of the library that runs it."""
    packages = {"pytorch": "torch", "litert": "ai-edge-litert", OPENVINO_DEFAULT: "openvino"}
    return version(packages.get(engine, engine))


def graph_engine(graph: "nn.Module", threads: int) -> Engine:
    """`graph`, which takes images, in PyTorch on the CPU, as an engine that is opened already."""
    import torch

    graph.eval()

    def run(image: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)  # of the whole process, hence set anew at each call
        with torch.inference_mode():
            return graph(torch.from_numpy(image)).numpy()

    return run


def tensorrt_stand_in(path: Path, threads: int) -> Engine:
    """TensorRT's ONNX file in ONNX Runtime, to show what TensorRT will compute. Its weights take 8 bits in INT8, which
    ONNX Runtime's integer kernels add up wrong on an x86 without VNNI.
    """
    return OpenFile(path, "onnxruntime", *_open_onnxruntime(path, threads, integers=False))


def pytorch_graph(path: Path) -> "nn.Module":
    """An own .safetensors or an official .pt file as a graph that takes uint8 (1, H, W, 3)."""
    from mde.export import ImageGraph, deployable
    from mde.models.build import network_in

    model = network_in(path)
    return ImageGraph(deployable(model), model.mean, model.std).eval()


def onnxruntime_session(
    path: Path, threads: int, profile: Path | None = None, integers: bool = True
) -> "onnxruntime.InferenceSession":
    """profile   begins the name of a file in which the times of the operators are collected
    integers  False: rounded values (Q/DQ pairs) are computed with in floats, the same on every processor
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle workers would otherwise spin for a while after each call, in the time of whatever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal: what it raises, it would also print
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if not integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def openvino_network(path: Path, threads: int, **properties: Any) -> "openvino.CompiledModel":
    """properties: OpenVINO's own, beside the usual ones"""
    from mde.openvino_core import core

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the CPU plugin takes bfloat16 by itself where the processor has it
    }
    return core().compile_model(path, "CPU", options | properties)


def default_precision() -> str:
    """What OPENVINO_DEFAULT computes FP32 files in: "bf16" where the processor has it, else "fp32"."""
    name = _openvino_default().get_type_name()
    return {"f32": "fp32", "f16": "fp16"}.get(name, name)


def _openvino_default() -> "openvino.Type":
    from mde.openvino_core import core

    return core().get_property("CPU", "INFERENCE_PRECISION_HINT")


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


Opened = tuple[Engine, list[Input] | None]


def _open_pytorch(path: Path, threads: int) -> Opened:
    return graph_engine(pytorch_graph(path), threads), None


def _open_onnxruntime(path: Path, threads: int, integers: bool = True) -> Opened:
    session = onnxruntime_session(path, threads, integers=integers)
    taken = session.get_inputs()
    name = taken[0].name
    return lambda image: session.run(None, {name: image})[0], [_onnx_input(tensor) for tensor in taken]


def _onnx_input(tensor: Any) -> Input:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return Input(tuple(side if isinstance(side, int) else None for side in tensor.shape), dtype)  # else it has a name


def _open_openvino(path: Path, threads: int) -> Opened:
    return _compiled(openvino_network(path, threads))


def _open_openvino_default(path: Path, threads: int) -> Opened:
    return _compiled(openvino_network(path, threads, INFERENCE_PRECISION_HINT=_openvino_default()))


def _compiled(network: "openvino.CompiledModel") -> Opened:
    return lambda image: network(image)[0], [_openvino_input(port) for port in network.inputs]


def _openvino_input(port: Any) -> Input:
    sides = (None if side.is_dynamic else side.get_length() for side in port.partial_shape)
    return Input(tuple(sides), port.element_type.to_dtype().name)


def _open_litert(path: Path, threads: int) -> Opened:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MdeError("engine litert: is not installed; pip install -e '.[tflite]'") from error
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details(), interpreter.get_output_details()[0]
    scale, zero = given["quantization"]  # of the network's own output; ours are floats, scale 0

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken[0]["index"], image)
        interpreter.invoke()
        output = interpreter.get_tensor(given["index"])
        return np.float32(scale) * (output.astype(np.float32) - zero) if scale else output

    return run, [Input(tuple(map(int, t["shape"])), np.dtype(t["dtype"]).name) for t in taken]


def _open_tensorrt(path: Path, threads: int) -> Opened:
    engine = tensorrt_engine(path)
    return engine, [Input(engine.input.shape, engine.input.dtype.name)]


# Name -> the files that it reads, and what opens them.
ENGINES: dict[str, tuple[tuple[str, ...], Callable[[Path, int], Opened]]] = {
    "pytorch": ((".safetensors", ".pt"), _open_pytorch),
    "onnxruntime": ((".onnx",), _open_onnxruntime),
    "openvino": ((".xml", ".onnx"), _open_openvino),
    OPENVINO_DEFAULT: ((".xml", ".onnx"), _open_openvino_default),
    "litert": ((".tflite",), _open_litert),
    "tensorrt": ((".engine",), _open_tensorrt),
}
