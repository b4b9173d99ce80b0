"""How long each layer of a network takes in the engine that runs it. Timing every layer slows a network down: compare
the layers with each other, and take latency from `mde.benchmark`."""

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mde.engines import check_engines, onnxruntime_session, openvino_network, pytorch_graph, tensorrt_engine
from mde.errors import MdeError

WARMUP = 3


class LayerTime(NamedTuple):
    """name      as the file calls it, of what the engine made of it: it may have fused several
    operator  as the engine calls it; "" where it does not say
    ms        mean of one call of the network
    """

    name: str
    operator: str
    ms: float


def layer_times(engine: str, path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    """The layers of the file in the order in which they run, means over `runs` calls after WARMUP others.

    engine  a name in PROFILERS
    image   as the file takes it

    Opens the file anew: an engine that is profiled is not one that is measured. MdeError for another engine.
    """
    check_engines([engine])
    if engine not in PROFILERS:
        raise MdeError(f"{path}: {NO_PROFILE[engine]}; choose from {', '.join(PROFILERS)}")
    return PROFILERS[engine](path, image, runs, threads)


def _onnxruntime(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime_session(path, threads, profile=Path(folder) / "profile")
        for _ in range(WARMUP + runs):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            times[key].append(event["dur"] / 1000)
    named = _names_in_onnx(path, times)
    return [LayerTime(named[key], key[1], float(np.mean(values[WARMUP:]))) for key, values in times.items()]


def _names_in_onnx(path: Path, found: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
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


def _openvino(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    request = openvino_network(path, threads, PERF_COUNT=True).create_infer_request()

    def totals(calls: int, before: int) -> dict[tuple[str, str], float]:
        for _ in range(calls):
            request.infer(image)
        # Its counters are means of all calls so far, the slow first ones among them.
        return {
            (entry.node_name, entry.node_type): entry.real_time.total_seconds() * 1000 * (before + calls)
            for entry in request.get_profiling_info()
            if entry.status == entry.Status.EXECUTED
        }

    first, last = totals(WARMUP, 0), totals(runs, WARMUP)
    return [LayerTime(*key, max(0.0, total - first[key]) / runs) for key, total in last.items()]


def _pytorch(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.module_tracker import ModuleTracker

    graph = pytorch_graph(path)
    times: dict[tuple[str, str], float] = defaultdict(float)

    class Clock(TorchDispatchMode):
        def __torch_dispatch__(
            self, operator: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
        ) -> Any:
            start = time.perf_counter()
            output = operator(*arguments, **(options or {}))
            module = max(tracker.parents, key=len).partition(".")[2]  # the innermost, without the graph's own name
            times[module, operator.overloadpacket.__name__] += (time.perf_counter() - start) * 1000
            return output

    torch.set_num_threads(threads)
    with torch.no_grad(), ModuleTracker() as tracker, Clock():
        for number in range(WARMUP + runs):
            if number == WARMUP:
                times.clear()
            graph(torch.from_numpy(image))
    return [LayerTime(*key, total / runs) for key, total in times.items()]


def _tensorrt(path: Path, image: np.ndarray, runs: int, _threads: int) -> list[LayerTime]:
    engine = tensorrt_engine(path)
    engine(image)
    for _ in range(WARMUP):
        engine.execute()
    times = engine.layer_times(runs)
    engine.close()
    return [LayerTime(name, "", ms) for name, ms in times.items()]


PROFILERS: dict[str, Callable[[Path, np.ndarray, int, int], list[LayerTime]]] = {
    "pytorch": _pytorch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
NO_PROFILE = {"litert": "LiteRT's Python interface gives no times of single layers"}
