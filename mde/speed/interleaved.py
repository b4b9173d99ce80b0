"""Latency of networks in the engines that run them, measured side by side."""

import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import nn

from mde.engines import ENGINES, check_engines, open_engine
from mde.errors import MdeError
from mde.export import export_onnx
from mde.jetson.depth import PARITY, differences
from mde.progress import track
from mde.speed.memory import peak_memory

READING_ONNX = [name for name, engine in ENGINES.items() if engine.writers and ".onnx" in engine.reads]
REFERENCE = "reference"


def engines_here() -> list[str]:
    """Those of READING_ONNX that are installed; none where what writes ONNX files is not."""
    writing = find_spec("onnx") and find_spec("onnxslim")
    return [name for name in READING_ONNX if writing and ENGINES[name].installed and ENGINES[name].runs_here()]


def interleave(
    runs: Mapping[str, Callable[[], object]], warmup: int, rounds: int, on_round: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Milliseconds of every call, by name and round. Each round calls every candidate once, so that what else the
    machine does meets all alike, in an order that is drawn anew (from the same seed), so that none always follows the
    same one and finds what that left in the caches.

    warmup    calls of each beforehand, not timed
    on_round  called after each round, between the timings
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for name in names:
            runs[name]()
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(names, len(names)):
            start = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - start) * 1000)
        if on_round is not None:
            on_round()
    return times


def measure_latency(
    graphs: dict[str, nn.Module],
    size: tuple[int, int],
    *,
    engines: Sequence[str] | None = None,
    threads: int = 2,
    warmup: int = 5,
    rounds: int = 30,
    memory: bool = True,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Latency of each of `graphs` for one image of `size` (height, width): name -> engine -> entry of metrics.json.

    Graphs are taken as given, in eval mode, and one of them is called "reference", the published network, which is
    exported without the exact rewrites: a speed-up is the median, over rounds, of the reference's time over the graph's
    in the same engine and round. All graphs of an engine are open at once, the engines one after the other. `memory` is
    measured beside, a process for each. MdeError when the reference is missing, an engine is unknown, a graph cannot be
    exported, or an engine computes something else than PyTorch does.
    """
    engines = engines_here() if engines is None else engines
    if not engines:
        raise MdeError(
            f"latency: no engine for ONNX files is installed; pip install onnx onnxslim {' '.join(READING_ONNX)}"
        )
    check_engines(engines)
    if REFERENCE not in graphs:
        raise MdeError(f"latency of {', '.join(graphs) or 'nothing'}: no graph is called {REFERENCE}; add it")
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    latency: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in graphs}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(graphs)}
        expected = {
            name: _export(graphs[name], file, image, as_published=name == REFERENCE)
            for name, file in track(files.items(), "exporting", transient=True)
        }
        for engine in engines:
            times = _time_in(engine, files, image.numpy(), expected, threads, warmup, rounds)
            common = {"threads": threads, "warmup": warmup, "engine_version": ENGINES[engine].version}
            for name in graphs:
                entry = latency_entry(times[name], times[REFERENCE]) | common
                if memory:
                    entry["peak_rss_mb"] = peak_memory(engine, files[name], image.numpy(), threads)
                latency[name][engine] = entry
    return latency


def _export(graph: nn.Module, path: Path, image: torch.Tensor, as_published: bool) -> np.ndarray:
    """Writes `graph` to `path` and returns what PyTorch computes of `image`."""
    graph = copy.deepcopy(graph).cpu().eval()
    export_onnx(graph, path, (image.shape[2], image.shape[3]), as_published=as_published)
    with torch.no_grad():
        return graph(image).numpy()


def _time_in(
    engine: str,
    files: dict[str, Path],
    image: np.ndarray,
    expected: dict[str, np.ndarray],
    threads: int,
    warmup: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Milliseconds of every file's calls in one engine, which is closed again; MdeError on another output."""
    runs = {name: partial(open_engine(engine, file, threads), image) for name, file in files.items()}
    for name, run in runs.items():
        check_output(run(), expected[name], f"{name} in {engine}")
    # Drawn between rounds only: a display that refreshes itself does so in the time of what is measured.
    with Progress(transient=True, auto_refresh=False) as progress:
        task = progress.add_task(f"timing in {engine}", total=rounds)
        return interleave(runs, warmup, rounds, on_round=lambda: progress.update(task, advance=1, refresh=True))


def latency_entry(times: list[float], reference: list[float]) -> dict[str, Any]:
    """What the times of a graph and of the reference, in milliseconds and paired by round, say about the graph.

    What times do not say, memory and pre- and post-processing, is None.
    """
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return {
        "status": "measured",
        "precision": "fp32",
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "fps": 1000 / p50,
        "speedup_vs_reference": statistics.median(r / t for r, t in zip(reference, times, strict=True)),
        "preprocess_ms": None,
        "postprocess_ms": None,
        "peak_rss_mb": None,
        "runs": len(times),
    }


def check_output(output: np.ndarray, expected: np.ndarray, where: str) -> None:
    """MdeError unless `output` is `expected` as closely as FP32 must be."""
    largest, limit = differences(output, expected)[0], PARITY["fp32"]
    if largest > limit:
        raise MdeError(
            f"{where}: differs from PyTorch by {largest:.2g} of the output's range, {limit:g} is allowed; this is a "
            "fault of the export, leave the engine out"
        )
