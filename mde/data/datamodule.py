"""The training loader of a run: an endless reproducible stream."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, get_worker_info

from mde.data.sample import Frames, Splits
from mde.data.sampler import StreamSampler
from mde.data.transforms import TrainingSet


class DepthData(L.LightningDataModule):
    """The training stream of `splits`.

    The k-th training sample is a function of (seed, k) alone, so a run that resumes after n steps goes on with sample
    n x batch_size, and ranks share out one global batch. batch_size counts over all ranks; augment=False takes whole
    frames, stretched to size (height, width). beforehand is called, before a worker starts, with the indices of the
    frames that this process will draw, each once, in the order of their first draws.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        max_steps: int,
        workers: int,
        seed: int,
        augment: bool = True,
        beforehand: Callable[[list[int]], None] | None = None,
    ):
        super().__init__()
        self.beforehand = beforehand
        self.splits, self.batch_size, self.max_steps = splits, batch_size, max_steps
        self.workers, self.seed = workers, seed
        self.training_set = TrainingSet(splits.train, size, mean, std, seed, augment)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None, "Lightning attaches the trainer before it asks for a loader"
        sampler = StreamSampler(
            [len(part) for part in parts_of(self.splits.train)],
            getattr(self.splits, "weights", [1.0]),
            self.seed,
            total=self.max_steps * self.batch_size,
            start=trainer.global_step * self.batch_size,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        if self.beforehand is not None:
            self.beforehand(list(dict.fromkeys(index for _, index in sampler)))
        return DataLoader(
            self.training_set,
            self.batch_size // trainer.world_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def calibration(self, count: int) -> list[dict[str, torch.Tensor]]:
        """`count` training samples spread evenly over the scenes, the same ones at every call."""
        frames = len(self.training_set)
        return [self.training_set[k, k * frames // count] for k in range(count)]


def in_shared_memory(image: Any) -> Any:
    """A tensor, or None, of a loader without batches, whose workers send what they read. Moved there by the worker, not
    while it is sent: where memory is short that fails too, but in a thread whose errors torch drops, and whoever waits
    does so for ever.
    """
    return image.share_memory_() if image is not None and get_worker_info() is not None else image


def parts_of(frames: Frames) -> list[Frames]:
    """The datasets that a mixture consists of; a plain dataset is its own only part."""
    return getattr(frames, "parts", [frames])
