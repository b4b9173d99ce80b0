"""The loaders of a run: an endless reproducible training stream, and validation frames at their own truth size."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mde.data.sample import Frames, Sample, Splits
from mde.data.sampler import StreamSampler
from mde.data.transforms import TrainingSet, normalise, resize_image


class EvaluationSet(Dataset):
    """(network input float32 (3, H, W), sample) of each frame; the truth is untouched."""

    def __init__(self, frames: Frames, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]):
        self.frames, self.size, self.mean, self.std = frames, size, mean, std

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Sample]:
        sample = self.frames[index]
        return normalise(resize_image(sample.image, self.size), self.mean, self.std), sample


def collate(items: list[tuple[Tensor, Sample]]) -> tuple[Tensor, list[Sample]]:
    """Images stacked, samples in a list: their truths may differ in size."""
    return torch.stack([image for image, _ in items]), [sample for _, sample in items]


class DepthData(L.LightningDataModule):
    """Training stream and validation frames of `splits`.

    The k-th training sample is a function of (seed, k) alone, so a run that resumes after n steps goes on with sample
    n x batch_size, and ranks share out one global batch. batch_size counts over all ranks.
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
    ):
        super().__init__()
        self.splits, self.batch_size, self.max_steps, self.workers, self.seed = (
            splits,
            batch_size,
            max_steps,
            workers,
            seed,
        )
        self.training_set = TrainingSet(splits.train, size, mean, std, seed, augment)
        self.validation_sets = [EvaluationSet(frames, size, mean, std) for frames in parts_of(splits.validation)]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None, "Lightning attaches the trainer before it asks for a loader"
        frames = self.splits.train
        sampler = StreamSampler(
            [len(part) for part in parts_of(frames)],
            getattr(self.splits, "weights", [1.0]),
            self.seed,
            total=self.max_steps * self.batch_size,
            start=trainer.global_step * self.batch_size,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return self._loader(self.training_set, self.batch_size // trainer.world_size, sampler=sampler)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._loader(part, self.batch_size, collate_fn=collate) for part in self.validation_sets]

    def _loader(self, dataset: Dataset, batch_size: int, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def parts_of(frames: Frames) -> list[Frames]:
    """The datasets that a mixture consists of; a plain dataset is its own only part."""
    return getattr(frames, "parts", [frames])
