"""ONNX Runtime on the CPU."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mde.engines.engine import PROFILER_WARMUP, Engine, Input, LayerTime, Opened, OpenFile

if TYPE_CHECKING:
    import onnxruntime

    from mde.engines.request import Request


def _session(
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


def _open(path: Path, threads: int, integers: bool = True) -> Opened:
    session = _session(path, threads, integers=integers)
    taken = session.get_inputs()
    name = taken[0].name
    return lambda image: session.run(None, {name: image})[0], [_input(tensor) for tensor in taken]


def _input(tensor: Any) -> Input:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return Input(tuple(side if isinstance(side, int) else None for side in tensor.shape), dtype)  # else it has a name


def open_in_floats(path: Path, threads: int) -> OpenFile:
    """A graph whose rounded values are computed with in floats: the same on every processor."""
    return OpenFile(path, ONNXRUNTIME.name, *_open(path, threads, integers=False))


def _layer_times(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, threads, profile=Path(folder) / "profile")
        for _ in range(PROFILER_WARMUP + runs):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            times[key].append(event["dur"] / 1000)
    named = _names_in(path, times)
    return [LayerTime(named[key], key[1], float(np.mean(values[PROFILER_WARMUP:]))) for key, values in times.items()]


def _names_in(path: Path, found: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """ONNX Runtime's (name, operator) of a node -> the name that it has in the file.

    It numbers what it quantizes ("_token_7"), and calls what it computes in its blocked layout after the tensor that
    comes out ("..._nchwc"): of a convolution that of the activation which it was fused with.
    """
    import onnx

    makers = {output: node for node in onnx.load(path).graph.node for output in node.output}
    names = {}
    for name, operator in found:
        names[name, operator] = re.sub(r"_token_\d+$", "", name)
        maker = makers.get(name.removesuffix("_nchwc")) if name.endswith("_nchwc") else None
        while maker is not None and operator == "Conv" and maker.op_type != "Conv":
            maker = makers.get(maker.input[0])
        if maker is not None:
            names[name, operator] = maker.name
    return names


def _write_fp32(request: "Request", path: Path) -> None:
    from mde.engines.request import copy, float_onnx

    copy(float_onnx(request), path)


def _write_half(request: "Request", path: Path) -> None:
    from mde.engines.request import float_onnx
    from mde.quantization.onnx_file import half_onnx

    half_onnx(float_onnx(request), path)


def _write_int8(request: "Request", path: Path) -> None:
    from mde.engines.pairs import check_pairs
    from mde.engines.request import unsigned_onnx

    unsigned_onnx(request, path)
    check_pairs(path)


def _write_dynamic(request: "Request", path: Path) -> None:
    from mde.engines.pairs import check_pairs
    from mde.engines.request import float_onnx
    from mde.quantization.onnx_file import dynamic_onnx

    dynamic_onnx(float_onnx(request), path)
    check_pairs(path)


ONNXRUNTIME = Engine(
    "onnxruntime",
    (".onnx",),
    "onnxruntime",
    _open,
    {"fp32": _write_fp32, "fp16": _write_half, "int8": _write_int8, "dynamic": _write_dynamic},
    profiler=_layer_times,
)
