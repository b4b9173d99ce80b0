"""Whether capture and alignment cost a network its frame rate, and whether a long run leaks.

    python -m benchmarks.sensor outputs/deploy/.../model.onnx recordings/room.db3
    python -m benchmarks.sensor outputs/deploy/.../model.onnx recordings/room.db3 --soak 10000

The first compares, in turn and in one process, the network on the recording's frames held in memory (preprocess, infer,
postprocess) with the whole pipeline, which reads and aligns them in a thread beside; and, where the emulator made the
recording, its depth with the exact one. The second evaluates the recording again and again, as deploy.py does, and
plots resident memory; a frame that does not arrive is an error.
"""

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from rich.progress import Progress, track

from mde.deploy.camera.observed import Observed
from mde.deploy.predict.run import CheckedRuntime
from mde.engines.runtime import Runtime, load_runtime
from mde.report.plots import png
from mde.sensors.ahead import Ahead
from mde.sensors.realsense import Settings
from mde.sensors.source import open_sensor

SETTLED = 0.1  # of the frames, after which memory is looked at: pools and caches have filled by then


def from_memory(runtime: Runtime, images: list[np.ndarray]) -> float:
    """Frames a second of the network alone."""
    start = time.perf_counter()
    for rgb in images:
        runtime.predict(rgb)
    return len(images) / (time.perf_counter() - start)


def from_recording(runtime: Runtime, recording: str) -> tuple[float, int]:
    """Frames a second of the pipeline, from the first frame asked for to the last depth, and how many there were."""
    with open_sensor(recording, Settings()) as stream, closing(Ahead(stream).__iter__()) as frames:
        count, start = 0, time.perf_counter()
        for frame in frames:
            runtime.predict(frame.rgb)
            count, end = count + 1, time.perf_counter()
    return count / (end - start), count


def rate(runtime: Runtime, recording: str, rounds: int) -> dict[str, float]:
    start = time.process_time()
    with open_sensor(recording, Settings()) as stream:
        images = [frame.rgb for frame in stream]
    reading = 1000 * (time.process_time() - start) / len(images)
    print(f"reading and aligning: {reading:.1f} ms of processor time a frame")
    from_memory(runtime, images[:5])
    pairs = []
    for _ in track(range(rounds), "in turn", transient=True):
        alone = from_memory(runtime, images)
        pipeline, count = from_recording(runtime, recording)
        if count != len(images):
            raise SystemExit(f"{recording}: {count} of {len(images)} frames arrived")
        pairs.append((alone, pipeline, pipeline / alone))
    alone, pipeline, share = np.median(pairs, axis=0)
    print(
        f"{len(images)} frames, {rounds} rounds, medians: network alone {alone:.1f} frames/s, pipeline {pipeline:.1f}"
    )
    print(f"pipeline / alone: {share:.2f}")
    figures = {"frames": len(images), "rounds": rounds, "reading_cpu_ms": reading}
    return figures | {"alone_fps": alone, "pipeline_fps": pipeline, "share": share}


def exactness(recording: str) -> None:
    """How far the depth that arrives, aligned to colour, is from the emulator's exact one."""
    with open_sensor(recording, Settings()) as stream, np.load(Path(recording).with_suffix(".exact.npz")) as file:
        exact = file["depth"]
        errors = [
            np.abs(frame.depth - exact[frame.number - 1])[(frame.depth > 0) & np.isfinite(exact[frame.number - 1])]
            for frame in stream
        ]
    median, high = 1000 * np.percentile(np.concatenate(errors), (50, 95))
    print(f"depth read back differs from the exact one by {median:.1f} mm (median), {high:.1f} mm (95th percentile)")


def soak(runtime: Runtime, recording: str, count: int, out: Path) -> dict[str, object]:
    process, readings, seen, lost, expected = psutil.Process(), [], 0, 0, None
    observed = Observed("network", CheckedRuntime(runtime), "recording", Settings().max_depth)
    with Progress(transient=True) as progress:
        bar = progress.add_task("soaking", total=count)
        while seen < count:
            with open_sensor(recording, Settings()) as stream, closing(Ahead(stream).__iter__()) as frames:
                before = seen
                for frame in frames:
                    observed.compare(frame, observed.predict(frame))
                    seen += 1
                    progress.advance(bar)
                    if seen % min(50, count) == 0:
                        readings.append((seen, process.memory_info().rss / 1e6))
                lost += stream.account.lost
                expected = expected or seen - before
                if seen - before != expected or stream.account.problem or lost:
                    raise SystemExit(f"{seen - before} of {expected} frames arrived; {stream.account.problem}")
    settled = np.array([reading for reading in readings if reading[0] >= SETTLED * count] or readings)
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0] * 1000) if len(settled) > 1 else 0.0
    draw(readings, out.with_suffix(".png"))
    reach = f"{settled[:, 1].min():.0f} to {settled[:, 1].max():.0f} MB"
    print(
        f"{seen} frames, {lost} lost; resident memory after the first {SETTLED:.0%}: {reach}, {slope:+.2f} MB per 1,000"
    )
    return {"frames": seen, "lost": lost, "memory_mb": readings, "mb_per_1000_frames": slope}


def draw(readings: list[tuple[int, float]], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained", dpi=100)
    axis = figure.subplots()
    axis.plot(*zip(*readings, strict=True))
    top = 1.1 * max(memory for _, memory in readings)
    axis.set(xlabel="frames", ylabel="resident memory, MB", ylim=(0, top))
    axis.grid(alpha=0.3)
    path.write_bytes(png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a deployed file")
    parser.add_argument("recording", help=".db3, .bag or a folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--soak", type=int, metavar="FRAMES", help="instead: memory over that many")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/sensor.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runtime = load_runtime(options.network, threads=options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.soak:
        figures: dict[str, object] = soak(runtime, options.recording, options.soak, options.out)
    else:
        figures = dict(rate(runtime, options.recording, options.rounds))
        if Path(options.recording).with_suffix(".exact.npz").exists():
            exactness(options.recording)
    options.out.write_text(json.dumps(figures, indent=1))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
