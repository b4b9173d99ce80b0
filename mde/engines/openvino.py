"""OpenVINO on the CPU, and its intermediate representation (IR)."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mde.atomic_file import atomic_file
from mde.engines.engine import PROFILER_WARMUP, Engine, Input, LayerTime, Opened
from mde.errors import MdeError

if TYPE_CHECKING:
    import openvino

    from mde.engines.request import Request


def _network(path: Path, threads: int, **properties: Any) -> "openvino.CompiledModel":
    """properties: OpenVINO's own, beside the usual ones"""
    from mde.engines.openvino_core import core

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the CPU plugin takes bfloat16 by itself where the processor has it
    }
    return core().compile_model(path, "CPU", options | properties)


def default_precision() -> str:
    """What OpenVINO computes FP32 files in by itself: "bf16" where the processor has it, else "fp32"."""
    name = _default().get_type_name()
    return {"f32": "fp32", "f16": "fp16"}.get(name, name)


def _default() -> "openvino.Type":
    from mde.engines.openvino_core import core

    return core().get_property("CPU", "INFERENCE_PRECISION_HINT")


def _open(path: Path, threads: int) -> Opened:
    return _compiled(_network(path, threads))


def _open_by_default(path: Path, threads: int) -> Opened:
    return _compiled(_network(path, threads, INFERENCE_PRECISION_HINT=_default()))


def _compiled(network: "openvino.CompiledModel") -> Opened:
    return lambda image: network(image)[0], [_input(port) for port in network.inputs]


def _input(port: Any) -> Input:
    sides = (None if side.is_dynamic else side.get_length() for side in port.partial_shape)
    return Input(tuple(sides), port.element_type.to_dtype().name)


def _layer_times(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    request = _network(path, threads, PERF_COUNT=True).create_infer_request()

    def totals(calls: int, before: int) -> dict[tuple[str, str], float]:
        for _ in range(calls):
            request.infer(image)
        # Its counters are means of all calls so far, the slow first ones among them.
        return {
            (entry.node_name, entry.node_type): entry.real_time.total_seconds() * 1000 * (before + calls)
            for entry in request.get_profiling_info()
            if entry.status == entry.Status.EXECUTED
        }

    first, last = totals(PROFILER_WARMUP, 0), totals(runs, PROFILER_WARMUP)
    return [LayerTime(*key, max(0.0, total - first[key]) / runs) for key, total in last.items()]


def export_openvino(onnx_path: Path, path: Path, float16: bool = False) -> None:
    """Converts an ONNX file, in FP32 or quantized, to `path` (.xml) and its weights beside it (.bin). Names and shapes
    stay.

    float16  weights are stored in half precision: half the file. What is computed in is the device's choice when the
             file is opened: a CPU computes in FP32.

    MdeError when `path` does not end in .xml or the ONNX file cannot be converted.
    """
    from mde.engines.openvino_core import openvino

    if path.suffix != ".xml":
        raise MdeError(f"{path}: OpenVINO finds the weights by the name; let it end in .xml")
    try:
        model = openvino.convert_model(str(onnx_path))
    except Exception as error:  # the converter has no error class of its own
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{onnx_path}: OpenVINO cannot convert it ({reason}); export it again") from error
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/model.xml", compress_to_fp16=float16)
        for suffix in (".bin", ".xml"):
            with open(f"{folder}/model{suffix}", "rb") as source, atomic_file(path.with_suffix(suffix)) as file:
                shutil.copyfileobj(source, file)


def _write_fp32(request: "Request", path: Path) -> None:
    from mde.engines.request import float_onnx

    export_openvino(float_onnx(request), path)


def _write_half(request: "Request", path: Path) -> None:
    from mde.engines.request import float_onnx

    export_openvino(float_onnx(request), path, float16=True)


def _write_int8(request: "Request", path: Path) -> None:
    from mde.engines.pairs import check_pairs
    from mde.engines.request import unsigned_onnx

    # The kernels are fastest with the quantization that ONNX Runtime likes, which NNCF's own does not surpass.
    quantized = request.folder / "unsigned.onnx"
    unsigned_onnx(request, quantized)
    export_openvino(quantized, path)
    check_pairs(path)


OPENVINO_DEFAULT = Engine(
    "openvino_default",
    (".xml", ".onnx"),
    "openvino",
    _open_by_default,
    no_profile="layers are timed in the file's own precision alone",
    computes=default_precision,
)
OPENVINO = Engine(
    "openvino",
    (".xml", ".onnx"),
    "openvino",
    _open,
    {"fp32": _write_fp32, "fp16": _write_half, "int8": _write_int8},
    profiler=_layer_times,
    by_default=OPENVINO_DEFAULT.name,
)
