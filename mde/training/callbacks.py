"""What happens beside training: validation with pictures, speed, a deadline, checkpoints that survive a full disk."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image
from torch import Tensor

from mde.atomic_file import atomic_file
from mde.data.datamodule import DepthData
from mde.data.sample import Frames, Sample
from mde.errors import MdeError
from mde.evaluation.quality import evaluate, network_predictor, spread
from mde.names import file_name
from mde.report.dispensable import dispensable
from mde.report.pictures import picture_sheet, save_picture, stack
from mde.report.wandb_run import WandbRun
from mde.training.module import DepthModule


class Validation(Callback):
    """Every `every` steps and after the last: all metrics on each validation set, and pictures of a few fixed frames.

    A callback and not Lightning's loop, so that one function evaluates everywhere: in float32, at the truth's own size.
    Rank 0 does it alone; the others wait for it at their next step.
    """

    def __init__(
        self, sets: list[Frames], size: tuple[int, int], every: int, protocol: str, pictures: Path, limit: int | None
    ):
        self.sets, self.size, self.every, self.protocol = sets, size, every, protocol
        self.pictures, self.limit = pictures, limit

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        last = trainer.global_step == trainer.max_steps
        if not trainer.is_global_zero or not (last or trainer.global_step % self.every == 0):
            return
        assert isinstance(module, DepthModule)
        predict = network_predictor(module.model, self.size)
        for frames in self.sets:
            quality = evaluate(predict, frames, protocol=self.protocol, limit=self.limit)
            name = file_name(frames.name)
            figures = {f"val/{name}/{key}": v for key, v in quality.items() if isinstance(v, (int, float))}
            for logger in trainer.loggers:  # directly: module.log() would wait for the next logged training step
                logger.log_metrics(figures, trainer.global_step)
            if quality["delta1"] is not None:
                shown = {"delta1/" + name: quality["delta1"]}
                module.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True)
        with dispensable(f"pictures of step {trainer.global_step}"):
            self._publish(trainer, self._drawn(predict))
        module.train()

    def _drawn(self, predict: Callable[[Sample], Tensor]) -> Image.Image:
        sheets = []
        for frames in self.sets:
            samples = [frames[index] for index in spread(len(frames), 4 // len(self.sets) or 1)]
            sheets.append(picture_sheet(samples, predict, frames.cap))
        return stack(sheets)

    def _publish(self, trainer: L.Trainer, sheet: Image.Image) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.log_image("pictures", [sheet], step=trainer.global_step)
        save_picture(sheet, self.pictures / f"step_{trainer.global_step:06d}.png")


class Compression(Callback):
    """A callback that makes the network smaller or coarser while it trains. Passed in by the configuration.

    dense_file  where it leaves the network as it was before
    """

    dense_file: Path

    def follow(self, step: int, module: DepthModule, data: DepthData, trainer: L.Trainer | None = None) -> None:
        """Does what is due at `step`, if it was not done already; without a trainer, to a network at rest."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """What the network's file has to say of it beside its tensors."""
        return {}


class Throughput(Callback):
    """Every `every` steps: images a second over all ranks, and the share of time that went into waiting for data."""

    def __init__(self, batch_size: int, every: int = 10):
        self.batch_size, self.every = batch_size, every
        self.waited, self.computed, self.mark = 0.0, 0.0, time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.waited, self.mark = self.waited + now - self.mark, now

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.computed, self.mark = self.computed + now - self.mark, now
        if trainer.global_step % self.every == 0:
            elapsed = self.waited + self.computed
            module.log("train/images_per_second", self.every * self.batch_size / elapsed)
            module.log("train/data_wait_share", self.waited / elapsed)
            self.waited = self.computed = 0.0


class ProgressBar(TQDMProgressBar):
    """Steps of the whole run. Lightning sets the length where an epoch begins, which a resumed run has behind it."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step


class Deadline(Callback):
    """Stops cleanly after so many minutes of training in this session; what a teacher computes before does not count.
    Lightning's own timer counts earlier sessions as well.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes

    def on_train_start(self, *_: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        late = time.monotonic() - self.began > self.seconds
        trainer.should_stop = trainer.should_stop or trainer.strategy.reduce_boolean_decision(late, all=False)


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: a full disk leaves the one before intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with atomic_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch's archive writer makes of a failed write
            reason = str(error).splitlines()[0]
            raise MdeError(f"{path}: not written ({reason}); free disk space, then continue with resume=") from error
