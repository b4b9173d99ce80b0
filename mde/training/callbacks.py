"""What happens beside training: pictures on fixed frames, images a second, checkpoints that survive a full disk."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mde.atomic_file import atomic_file
from mde.data.sample import Frames
from mde.errors import MdeError
from mde.evaluation import network_predictor, spread
from mde.report.pictures import picture_sheet
from mde.training.module import DepthModule


class PicturePanel(Callback):
    """After each validation: image, truth, prediction and error of the same few frames, as a file and in W&B."""

    def __init__(self, directory: Path, frames: Frames, size: tuple[int, int], count: int = 4):
        self.directory, self.size = directory, size
        self.samples = [frames[index] for index in spread(len(frames), count)]
        self.cap = frames.cap

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DepthModule)
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        predict = network_predictor(module.model, self.size)
        sheet = picture_sheet(self.samples, predict, self.cap)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step_{trainer.global_step:06d}.png"
        sheet.save(path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("pictures", [sheet], step=trainer.global_step)


class Throughput(Callback):
    """Logs train/images_per_second (over all ranks) and train/data_wait_share between two logged steps."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.step, self.computing, self.began = 0, 0.0, time.perf_counter()
        self.batch_began = self.began

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer.global_step)  # validation is not training time

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.computing += now - self.batch_began
        steps, elapsed = trainer.global_step - self.step, now - self.began
        if steps >= 10 and elapsed > 0:
            module.log("train/images_per_second", steps * self.batch_size / elapsed)
            module.log("train/data_wait_share", max(0.0, 1 - self.computing / elapsed))
            self._restart(trainer.global_step)

    def _restart(self, step: int) -> None:
        self.step, self.computing, self.began = step, 0.0, time.perf_counter()


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: a full disk leaves the one before intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with atomic_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch's archive writer makes of a failed write
            raise MdeError(
                f"{path}: not written ({str(error).splitlines()[0]}); free disk space, then resume"
            ) from error
