"""How long a run will take, said before it begins."""

import copy
import time
from collections.abc import Callable

import lightning as L
import torch
from torch.utils.data import Dataset

from mde.training.module import DepthModule

TRIAL_STEPS = 3


def step_seconds(module: DepthModule, trainer: L.Trainer, data: Dataset, batch_size: int, workers: int) -> float:
    """Seconds of one training step, optimizer and data included, measured on copies that are thrown away.

    Without a spare core the loader's work and the step's add up, which is what is assumed for a worker as well.
    """
    trial = copy.deepcopy(module)
    optimizer = trial.configure_optimizers()["optimizer"]
    batch = torch.utils.data.default_collate([data[k, k % len(data)] for k in range(batch_size)])  # type: ignore

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            prediction = trial.model(batch["image"].contiguous(memory_format=torch.channels_last))
        trial.objective(prediction, batch["depth"], batch["mask"], 0, batch.get("teacher"))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    loading = seconds(lambda: data[0, 0], TRIAL_STEPS) * batch_size / (torch.get_num_threads() if workers else 1)
    return seconds(step, TRIAL_STEPS) + loading


def seconds(work: Callable[[], object], times: int) -> float:
    """Mean time of a call, the first one, which allocates, left out."""
    work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times
