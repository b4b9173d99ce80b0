"""The LightningModule: one step of training, one of validation, and the optimizer."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mde.config import OptimizerConfig
from mde.data.sample import Frames, Sample
from mde.losses import align_scale_shift, inverse_depth_target
from mde.metrics import DepthMetrics, resize_prediction
from mde.training.objective import Objective

BatchNorm = nn.modules.batchnorm._BatchNorm


class DepthModule(L.LightningModule):
    """Trains `model`, a plain network: normalised images (N, 3, H, W) -> inverse depth (N, 1, H, W).

    validation: the datasets behind the validation loaders, in order; each logs under its own name.
    freeze_batchnorm keeps BatchNorm in evaluation mode, for batches too small for statistics of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: OptimizerConfig,
        *,
        max_steps: int,
        validation: list[Frames],
        protocol: str = "inverse_depth",
        freeze_batchnorm: bool = False,
    ):
        super().__init__()
        self.model, self.objective, self.optimizer_config = model, objective, optimizer
        self.max_steps, self.freeze_batchnorm = max_steps, freeze_batchnorm
        self.validation_names = [frames.name for frames in validation]
        # Every rank validates every frame, so that no rank waits for another that has one more.
        self.validation_metrics = nn.ModuleList(
            DepthMetrics(cap=frames.cap, protocol=protocol, sync_on_compute=False) for frames in validation
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def on_train_epoch_start(self) -> None:
        if self.freeze_batchnorm:
            self._freeze()

    def on_validation_end(self) -> None:
        if self.freeze_batchnorm:
            self._freeze()

    def _freeze(self) -> None:
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.eval()

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        prediction = self.model(batch["image"].contiguous(memory_format=torch.channels_last))
        parts = self.objective(prediction, batch["depth"], batch["mask"], self.global_step)
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, prog_bar=False)
        if self.global_step % 10 == 0:
            self.log_dict(health(prediction.detach().float(), batch["depth"], batch["mask"]))
        return parts["loss"]

    def validation_step(self, batch: tuple[Tensor, list[Sample]], batch_index: int, dataloader_idx: int = 0) -> None:
        images, samples = batch
        metrics: Any = self.validation_metrics[dataloader_idx]
        for prediction, sample in zip(self.model(images).float(), samples, strict=True):
            depth, mask = sample.depth[None].to(self.device), sample.mask[None].to(self.device)
            metrics.update(resize_prediction(prediction[None], depth.shape[-2:]), depth, mask, sample.depth_unit)

    def on_validation_epoch_end(self) -> None:
        for name, metrics in zip(self.validation_names, self.validation_metrics, strict=True):
            for key, value in metrics.compute().items():  # type: ignore[operator]
                if isinstance(value, (int, float)):
                    self.log(f"val/{name}/{key}", float(value), prog_bar=key == "delta1")
            metrics.reset()  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        groups = [
            {"name": "encoder", "params": list(self.model.encoder.parameters()), "lr": config.encoder_lr},  # type: ignore
            {"name": "decoder", "params": list(self.model.decoder.parameters()), "lr": config.decoder_lr},  # type: ignore
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at max_steps."""
        warmup = min(self.optimizer_config.warmup_steps, self.max_steps // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.max_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def health(prediction: Tensor, depth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Early signs of the ways in which training dies: a dead closing ReLU, outputs running away, an inverted sign."""
    scale, _ = align_scale_shift(prediction, inverse_depth_target(depth, mask), mask)
    return {
        "health/dead_share": (prediction == 0).float().mean(),
        "health/output_max": prediction.max(),
        "health/output_std": prediction.std(),
        "health/negative_scale_share": (scale < 0).float().mean(),
    }
