"""What is to be written, and the ONNX graphs on the way to engines' files."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mde.atomic_file import atomic_file
from mde.engines.description import Description
from mde.export import ImageGraph, export_onnx
from mde.quantization.onnx_file import fake_quantized_onnx, half_onnx, quantize_onnx


@dataclass(frozen=True)
class Request:
    """network      as `build_model` calls it
    graph        what is deployed, or the published network as the baseline (`as_published`)
    size         height, width of its input
    precision    fp32, fp16, int8 or dynamic
    calibration  images of its size, uint8 (1, H, W, 3), for int8
    exclude      layers that int8 leaves in float
    scales       of the inputs of convolutions, where int8 was trained (quantize=qat): nothing is calibrated
    opset        of ONNX
    library      of TensorRT: auto, tensorrt or tensorrt_rtx
    folder       for files on the way
    """

    network: str
    graph: ImageGraph
    size: tuple[int, int]
    precision: str
    folder: Path
    calibration: Sequence[np.ndarray] = ()
    exclude: Sequence[str] = ()
    scales: Mapping[str, float] | None = None
    opset: int = 17
    library: str = "auto"
    as_published: bool = False

    def inputs(self) -> list[np.ndarray]:
        """The calibration images as the graph takes them."""
        order = (0, 1, 2, 3) if self.graph.layout == "nhwc" else (0, 3, 1, 2)
        return [np.ascontiguousarray(i.transpose(order), dtype=self.graph.dtype) for i in self.calibration]

    def describe(self, engine: str) -> Description:
        return Description(self.network, engine, self.precision, self.size, self.graph.layout, self.graph.dtype)


def float_onnx(request: Request) -> Path:
    """The FP32 graph as an ONNX file in the request's folder, exported once."""
    path = request.folder / f"float{request.opset}{'_published' * request.as_published}.onnx"
    if not path.exists():
        export_onnx(request.graph, path, request.size, request.opset, request.as_published)
    return path


def typed_onnx(request: Request) -> Path:
    """The graph with its precision inside, as a strongly typed TensorRT takes it; made once, in the folder."""
    source = float_onnx(request)
    if request.precision == "fp32":
        return source
    excluded = hashlib.sha256("\n".join(request.exclude).encode()).hexdigest()[:8]
    path = request.folder / f"{request.precision}_{excluded}.onnx"
    if path.exists():
        return path
    if request.precision == "fp16":
        half_onnx(source, path)
    elif request.scales is not None:
        fake_quantized_onnx(source, path, request.scales)
    else:
        quantize_onnx(source, path, request.inputs(), symmetric=True, exclude=request.exclude)
    return path


def unsigned_onnx(request: Request, path: Path) -> None:
    """Writes the graph in INT8 as it is fast on x86; one that was trained for INT8 with the scales of its training."""
    if request.scales is not None:
        copy(typed_onnx(request), path)
    else:
        quantize_onnx(float_onnx(request), path, request.inputs(), exclude=request.exclude)


def copy(source: Path, path: Path) -> None:
    """Whole or not at all."""
    with source.open("rb") as content, atomic_file(path) as file:
        shutil.copyfileobj(content, file)
