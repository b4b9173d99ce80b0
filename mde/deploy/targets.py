"""From a network to the file that each target runs, in each precision."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mde.atomic_file import atomic_file
from mde.cache import cache_folder
from mde.deploy.description import Description, write_description
from mde.deploy.quantization.onnx_file import dynamic_onnx, fake_quantized_onnx, half_onnx, quantize_onnx
from mde.deploy.quantization.pairs import check_pairs
from mde.deploy.quantization.tflite_file import half_tflite, quantize_tflite
from mde.errors import MdeError
from mde.export import ImageGraph, export_onnx, export_openvino
from mde.export.tflite import export_tflite
from mde.jetson.builder import BuildError, cached_engine, load_tensorrt

# Of each quantize.kind.
PRECISIONS = {"none": "fp32", "float16": "fp16", "int8": "int8", "dynamic": "dynamic", "qat": "int8"}


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


def write_target(target: str, request: Request, path: Path) -> None:
    """Writes the file that `target` runs to `path`, and its description beside it.

    MdeError when the target has no such precision or is not installed, and what the exporters refuse.
    """
    check_target(target, request.precision)
    TARGETS[target][1][request.precision](request, path)
    if target in ("onnxruntime", "openvino") and request.precision in ("int8", "dynamic"):
        check_pairs(path)
    if target != "tensorrt":  # whose builder describes what it built itself
        write_description(path, request.describe(target))


def check_target(target: str, precision: str) -> None:
    """MdeError when `target` is unknown or computes nothing in `precision`."""
    if target not in TARGETS:
        raise MdeError(f"target.name={target}: unknown; choose from {', '.join(TARGETS)}")
    if precision not in TARGETS[target][1]:
        offered = ", ".join(name for name, (_, known) in TARGETS.items() if precision in known)
        raise MdeError(f"target={target}: computes nothing in {precision}; choose one of {offered}")


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


def _copy(source: Path, path: Path) -> None:
    with source.open("rb") as content, atomic_file(path) as file:
        shutil.copyfileobj(content, file)


def _onnx_fp32(request: Request, path: Path) -> None:
    _copy(float_onnx(request), path)


def _onnx_int8(request: Request, path: Path) -> None:
    if request.scales is not None:
        _copy(typed_onnx(request), path)
    else:
        quantize_onnx(float_onnx(request), path, request.inputs(), exclude=request.exclude)


def _openvino_int8(request: Request, path: Path) -> None:
    if request.scales is not None:
        quantized = typed_onnx(request)
    else:
        # The kernels are fastest with the quantization that ONNX Runtime likes, which NNCF's own does not surpass.
        quantized = request.folder / "unsigned.onnx"
        _onnx_int8(request, quantized)
    export_openvino(quantized, path)


def _float_tflite(request: Request) -> Path:
    path = request.folder / f"float{'_published' * request.as_published}.tflite"
    if not path.exists():
        export_tflite(request.graph, path, request.size)
    return path


def _tflite_fp32(request: Request, path: Path) -> None:
    _copy(_float_tflite(request), path)


def _tflite_int8(request: Request, path: Path) -> None:
    quantize_tflite(_float_tflite(request), path, request.inputs(), request.exclude)


def _engine(request: Request, path: Path) -> None:
    names = ("tensorrt", "tensorrt_rtx") if request.library == "auto" else (request.library,)
    try:
        trt = load_tensorrt(names)
        cache = cache_folder() / "engines"
        cache.mkdir(parents=True, exist_ok=True)
        described = asdict(request.describe("tensorrt"))
        graph = str(typed_onnx(request))
        cached_engine(str(cache), trt, graph, str(path), request.precision, described, log=lambda _: None)
    except BuildError as error:
        raise MdeError(f"target=tensorrt: {error}") from error


Writer = Callable[[Request, Path], None]
# Target -> the suffix of its file, and what writes it in each precision. PyTorch runs model.safetensors as it is.
TARGETS: dict[str, tuple[str, dict[str, Writer]]] = {
    "pytorch": (".safetensors", {"fp32": lambda request, path: None}),
    "onnxruntime": (
        ".onnx",
        {
            "fp32": _onnx_fp32,
            "fp16": lambda request, path: half_onnx(float_onnx(request), path),
            "int8": _onnx_int8,
            "dynamic": lambda request, path: dynamic_onnx(float_onnx(request), path),
        },
    ),
    "openvino": (
        ".xml",
        {
            "fp32": lambda request, path: export_openvino(float_onnx(request), path),
            "fp16": lambda request, path: export_openvino(float_onnx(request), path, float16=True),
            "int8": _openvino_int8,
        },
    ),
    "litert": (
        ".tflite",
        {
            "fp32": _tflite_fp32,
            "fp16": lambda request, path: half_tflite(_float_tflite(request), path),
            "int8": _tflite_int8,
        },
    ),
    "tensorrt": (".engine", {"fp32": _engine, "fp16": _engine, "int8": _engine}),
}
