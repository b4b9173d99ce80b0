"""How long an engine takes, alone and from image to depth, at first and after minutes, and what it does to the board.

Python 3.6 syntax and NumPy: the Jetson bundle ships this file.
"""

import resource
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Sequence

import numpy as np

if TYPE_CHECKING or __package__:
    from mde.jetson import device
    from mde.jetson.arithmetic import resize_bilinear
    from mde.jetson.depth import predict, prepare
    from mde.jetson.engine import Engine
else:
    import device
    from arithmetic import resize_bilinear
    from depth import predict, prepare
    from engine import Engine

WARMUP, RUNS, WINDOW_S = 20, 200, 10

Json = Dict[str, Any]


def benchmark(engine: Engine, description: Json, images: Any, minutes: float) -> Json:
    """The `latency` entry of metrics.json. Beside its usual fields, in milliseconds where a time:

    compute_ms      the engine without the copies to and from the GPU: what trtexec calls GPU compute time
    image_to_depth  p50_ms, p95_ms, p99_ms of resizing, engine and resizing back
    sustained       the same back to back for `minutes`: windows of ten seconds, power, temperature, throttling
    """
    ready = [prepare(image, description) for image in images]
    outputs = [engine(image)[0, 0] for image in ready]
    for number in range(WARMUP):
        engine(ready[number % len(ready)])
    alone = timed(engine, ready, RUNS)
    compute = timed(lambda _: engine.execute(), ready, RUNS)
    before = timed(lambda image: prepare(image, description), images, RUNS // 4)
    after = timed(lambda output: resize_bilinear(output, images[0].shape[:2]), outputs, RUNS // 4)
    entry = dict(percentiles(alone), status="measured", fps=1000 / float(np.median(alone)), speedup_vs_reference=None)
    entry.update(
        compute_ms=float(np.median(compute)),
        preprocess_ms=float(np.median(before)),
        postprocess_ms=float(np.median(after)),
        image_to_depth=percentiles(timed(lambda image: predict(engine, description, image), images, RUNS // 4)),
        sustained=sustain(lambda image: predict(engine, description, image), images, minutes),
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        threads=None,
        warmup=WARMUP,
        runs=RUNS,
    )
    return entry


def sustain(run: Callable[[Any], Any], inputs: Sequence[Any], minutes: float) -> Json:
    """What `run` takes over time when it does nothing else, and what that does to the board."""
    windows, throttled = [], device.throttling()
    start = time.perf_counter()
    with device.Tegrastats() as board:
        while time.perf_counter() - start < minutes * 60:
            begin = time.perf_counter()
            times: List[float] = []
            until = min(begin + WINDOW_S, start + minutes * 60)
            while not times or time.perf_counter() < until:
                times += timed(run, inputs, 1)
            windows.append(dict(percentiles(times), second=round(begin - start), runs=len(times)))
    return dict(
        board.summary(),
        minutes=minutes,
        windows=windows,
        throttling={"before": throttled, "after": device.throttling()},
        memory=device.memory(),
    )


def timed(run: Callable[[Any], Any], inputs: Sequence[Any], runs: int) -> List[float]:
    """Milliseconds of each of `runs` calls, on the inputs in turn."""
    times = []
    for number in range(runs):
        start = time.perf_counter()
        run(inputs[number % len(inputs)])
        times.append((time.perf_counter() - start) * 1000)
    return times


def percentiles(times: List[float]) -> Json:
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), np.percentile(times, [50, 95, 99]).tolist()))
