"""Speed and memory of training on this machine, against the network as published in plain PyTorch.

    python -m benchmarks.training                      # speed of a step, and of the data alone
    python -m benchmarks.training --memory-steps 1000  # resident memory over a long run

The step of the published network (order of operations as published, float32, default memory layout, BatchNorm in
training mode) and ours (as train.py's default takes it: 1 x 1 convolutions before upsampling, channels last, the
precision of trainer.precision=auto, BatchNorm frozen) are timed alternately in one process on the same batch: forward,
loss, backward, AdamW. A third row is ours without the frozen BatchNorm. Medians; the ratio is the figure, times depend
on the machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from mde.config import OptimizerConfig, TrainerConfig
from mde.data.sampler import StreamSampler
from mde.data.synthetic import SyntheticFrames
from mde.data.transforms import TrainingSet
from mde.models import build_model
from mde.records import environment
from mde.training.module import DepthModule
from mde.training.objective import Objective
from mde.training.run import RATES
from mde.training.trainer import precision


def stepper(encoder: str, published: bool, freeze: bool = False) -> Callable[[dict[str, Tensor]], float]:
    """A function that takes one training step on a batch and returns its loss."""
    model = build_model("midas_small", encoder=encoder, reference=published)
    if not published:
        model.to(memory_format=torch.channels_last)
    module = DepthModule(model, Objective("trimmed", 0.5, 0), OptimizerConfig(**RATES), 10**6, freeze)
    optimizer = module.configure_optimizers()["optimizer"]
    mixed = not published and precision(OmegaConf.structured(TrainerConfig)) == "bf16-mixed"

    def step(batch: dict[str, Tensor]) -> float:
        image = batch["image"] if published else batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            prediction = model(image)
        loss = module.objective(prediction, batch["depth"], batch["mask"], 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def batches(size: tuple[int, int], batch_size: int, workers: int, total: int) -> Iterator[dict[str, Tensor]]:
    """The default training data, as train.py loads it."""
    frames = SyntheticFrames(20000, size)
    data = TrainingSet(frames, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0)
    sampler = StreamSampler([len(frames)], [1.0], 0, total * batch_size)
    return iter(DataLoader(data, batch_size, sampler=sampler, num_workers=workers))


def interleaved(steps: dict[str, Callable[[dict[str, Tensor]], float]], batch: dict[str, Tensor], rounds: int) -> dict:
    """Median seconds of each, timed in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def loading_seconds(size: tuple[int, int], batch_size: int, workers: int, count: int) -> float:
    """Seconds a batch when nothing but loading runs."""
    stream = batches(size, batch_size, workers, count + 1)
    next(stream)
    began = time.perf_counter()
    for _ in stream:
        pass
    return (time.perf_counter() - began) / count


def rendering_rate(size: tuple[int, int], frames: int) -> float:
    """Frames a second of the synthetic renderer alone, in two worker processes."""
    stream = iter(DataLoader(SyntheticFrames(frames + 2, size), batch_size=None, num_workers=2))
    next(stream), next(stream)  # the first frame of each worker makes its textures
    began = time.perf_counter()
    for _ in stream:
        pass
    return frames / (time.perf_counter() - began)


def memory(size: tuple[int, int], batch_size: int, encoder: str, steps: int) -> list[tuple[int, float]]:
    """(step, resident MB) during training on the default data."""
    step, process = stepper(encoder, published=False, freeze=True), psutil.Process()
    readings = []
    for number, batch in enumerate(batches(size, batch_size, 1, steps), start=1):
        step(batch)
        if number % max(1, steps // 20) == 0:
            readings.append((number, process.memory_info().rss / 2**20))
            print(f"step {readings[-1][0]:5d}: {readings[-1][1]:7.1f} MB", flush=True)
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-steps", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    size = options.size[0], options.size[1]
    figures: dict = {
        "environment": environment(),
        "encoder": options.encoder,
        "size": size,
        "batch": options.batch_size,
    }
    if options.memory_steps:
        figures["memory_mb"] = memory(size, options.batch_size, options.encoder, options.memory_steps)
    else:
        steps = {
            "published": stepper(options.encoder, published=True),
            "ours": stepper(options.encoder, published=False, freeze=True),
            "ours, BatchNorm training": stepper(options.encoder, published=False),
        }
        seconds = interleaved(steps, next(batches(size, options.batch_size, 0, 1)), options.rounds)
        seconds["data, 1 worker"] = loading_seconds(size, options.batch_size, 1, options.rounds)
        seconds["data, 2 workers, nothing else"] = loading_seconds(size, options.batch_size, 2, options.rounds)
        for name, value in seconds.items():
            print(f"{name:30s} {options.batch_size / value:7.2f} images/s")
        figures["rendered_frames_per_second"] = rendering_rate((256, 256), 15 * options.rounds)
        print(f"renderer, 256 x 256, two processes: {figures['rendered_frames_per_second']:.1f} frames/s")
        print(f"ours / published: {seconds['published'] / seconds['ours']:.2f}x")
        figures["seconds_per_batch"] = seconds
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
