"""PyTorch on the CPU: runs a network's own file as it is."""

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mde.engines.engine import PROFILER_WARMUP, Engine, LayerTime, Opened, Run

if TYPE_CHECKING:
    from torch import nn


def graph_engine(graph: "nn.Module", threads: int) -> Run:
    """`graph`, which takes images, as a function that an opened file is."""
    import torch

    graph.eval()

    def run(image: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)  # of the whole process, hence set anew at each call
        with torch.inference_mode():
            return graph(torch.from_numpy(image)).numpy()

    return run


def pytorch_graph(path: Path) -> "nn.Module":
    """An own .safetensors or an official .pt file as a graph that takes uint8 (1, H, W, 3)."""
    from mde.export import ImageGraph, deployable
    from mde.models.build import network_in

    model = network_in(path)
    return ImageGraph(deployable(model), model.mean, model.std).eval()


def _open(path: Path, threads: int) -> Opened:
    return graph_engine(pytorch_graph(path), threads), None


def _layer_times(path: Path, image: np.ndarray, runs: int, threads: int) -> list[LayerTime]:
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
        for number in range(PROFILER_WARMUP + runs):
            if number == PROFILER_WARMUP:
                times.clear()
            graph(torch.from_numpy(image))
    return [LayerTime(*key, total / runs) for key, total in times.items()]


PYTORCH = Engine(
    "pytorch",
    (".safetensors", ".pt"),
    "torch",
    _open,
    {"fp32": lambda request, path: None},  # model.safetensors, which every run has
    profiler=_layer_times,
    describes=True,
    run_graph=graph_engine,
)
