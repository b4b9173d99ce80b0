"""The LightningModule: a step of training, and the optimizer."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mde.config import OptimizerConfig
from mde.losses import align_scale_shift, inverse_depth_target
from mde.models.health import skip_shares
from mde.models.network import DepthNetwork
from mde.models.scale import scaled_maps
from mde.training.held_scale import scale_term
from mde.training.objective import Objective

LOG_EVERY = 10  # steps

BatchNorm = nn.modules.batchnorm._BatchNorm


class DepthModule(L.LightningModule):
    """Trains `model`, a plain network: normalised images (N, 3, H, W) -> inverse depth (N, 1, H, W).

    freeze_batchnorm keeps BatchNorm in evaluation mode, for batches too small for statistics of their own.
    """

    def __init__(
        self,
        model: DepthNetwork,
        objective: Objective,
        optimizer: OptimizerConfig,
        max_steps: int,
        freeze_batchnorm: bool = False,
    ):
        super().__init__()
        self.model, self.objective, self.optimizer_config = model, objective, optimizer
        self.max_steps, self.freeze_batchnorm = max_steps, freeze_batchnorm
        # Further terms of the loss, from images and prediction: a pruned network's teacher, for example.
        self.beside: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
        self.train()  # networks are built in evaluation mode, and Lightning leaves modes as it finds them

    def train(self, mode: bool = True) -> "DepthModule":
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        watched = (self.global_step + 1) % LOG_EVERY == 0
        looking: AbstractContextManager[dict[str, float]] = skip_shares(self.model) if watched else nullcontext({})
        with scaled_maps(self.model) as maps, looking as shares:
            prediction = self.model(batch["image"].contiguous(memory_format=torch.channels_last))
        parts = self.objective(prediction, batch["depth"], batch["mask"], self.global_step, batch.get("teacher"))
        further = self.beside(batch["image"], prediction) if self.beside is not None else {}
        if self.objective.blind_to_scale:
            further["scale"] = scale_term(maps)
        parts = parts | further | {"loss": parts["loss"] + sum(further.values())}
        several = self.trainer.world_size > 1
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, sync_dist=several)
        if watched:
            signs: dict[str, Tensor | float] = {**health(prediction.detach().float(), batch["depth"], batch["mask"])}
            signs |= {f"skip_share/{name}": share for name, share in shares.items()}
            self.log_dict({f"health/{name}": value for name, value in signs.items()}, sync_dist=several)
        return parts["loss"]

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
        "dead_share": (prediction == 0).float().mean(),
        "output_max": prediction.max(),
        "output_std": prediction.std(),
        "negative_scale_share": (scale < 0).float().mean(),
    }
