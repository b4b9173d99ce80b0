"""LiteRT on the CPU, and TFLite files straight from PyTorch: the detour by ONNX is where such conversions fail."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mde.atomic_file import atomic_file
from mde.engines.engine import Engine, Input, Opened
from mde.errors import MdeError
from mde.quiet import quiet

if TYPE_CHECKING:
    from mde.engines.request import Request
    from mde.export import ImageGraph


def _open(path: Path, threads: int) -> Opened:
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


def export_tflite(graph: "ImageGraph", path: Path, size: tuple[int, int]) -> None:
    """Writes `graph` to `path` (.tflite), FP32, for one image of `size` (height, width).

    MdeError when litert-torch is not installed or cannot convert the graph.
    """
    with quiet():
        try:
            import litert_torch
        except ImportError as error:
            raise MdeError("target=litert: litert-torch is not installed; pip install -e '.[tflite]'") from error
        try:
            converted = litert_torch.convert(graph.eval(), (graph.example(size),))
            with tempfile.TemporaryDirectory() as folder:
                converted.export(f"{folder}/model.tflite")
                content = Path(folder, "model.tflite").read_bytes()
        except Exception as error:  # the converter runs the network's own code, which can fail in any way
            reason = str(error).strip().partition("\n")[0]
            raise MdeError(f"{path}: cannot be converted to TFLite at {size[0]} x {size[1]} ({reason})") from error
    with atomic_file(path) as file:
        file.write(content)


def _float_tflite(request: "Request") -> Path:
    path = request.folder / f"float{'_published' * request.as_published}.tflite"
    if not path.exists():
        export_tflite(request.graph, path, request.size)
    return path


def _write_fp32(request: "Request", path: Path) -> None:
    from mde.engines.request import copy

    copy(_float_tflite(request), path)


def _write_half(request: "Request", path: Path) -> None:
    from mde.quantization.tflite_file import half_tflite

    half_tflite(_float_tflite(request), path)


def _write_int8(request: "Request", path: Path) -> None:
    from mde.quantization.tflite_file import quantize_tflite

    quantize_tflite(_float_tflite(request), path, request.inputs(), request.exclude)


LITERT = Engine(
    "litert",
    (".tflite",),
    "ai-edge-litert",
    _open,
    {"fp32": _write_fp32, "fp16": _write_half, "int8": _write_int8},
    no_profile="LiteRT's Python interface gives no times of single layers",
    takes_trained_scales=False,
)
