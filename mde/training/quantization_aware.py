"""Quantization-aware training: the network that trains is the one that INT8 will compute."""

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import Tensor

from mde.data.datamodule import DepthData
from mde.errors import MdeError
from mde.export.rewrites import fold_batchnorm
from mde.models import save_model
from mde.models.build import UNTRAINED
from mde.models.scale import rescale
from mde.quantization.fake import SCALES, activation_scales, convolutions, fake_quantize
from mde.training.callbacks import Compression
from mde.training.module import BatchNorm, DepthModule

FLOAT = "float.safetensors"  # in the run directory: the network as it was before


def build_quantization(config: DictConfig, run_dir: Path) -> "QuantizationAware | None":
    """The callback that config.quantize asks for, None with quantize=none. MdeError for what cannot be trained."""
    kind = config.quantize.kind
    if kind == "none":
        return None
    if kind != "qat":
        raise MdeError(f"quantize={kind}: needs no training; give it to deploy.py, or train with quantize=qat")
    if config.prune.kind != "none":
        raise MdeError(
            f"quantize=qat with prune={config.prune.kind}: prune first, then give the pruned network: "
            "train.py weights=PATH quantize=qat"
        )
    if config.weights in UNTRAINED:
        raise MdeError(f"quantize=qat with weights={config.weights}: fine-tunes a trained network; give weights=PATH")
    if config.quantize.frames < 1:
        raise MdeError(f"quantize.frames={config.quantize.frames}: must be at least 1")
    return QuantizationAware(config.quantize.frames, run_dir)


class QuantizationAware(Compression):
    """Before the first step: folds BatchNorm, measures the scales of activations on `frames` training images, and makes
    every convolution compute with rounded weights and inputs. Weights follow the depth losses through the rounding
    (straight-through: Bengio et al., 2013; folding and Q/DQ as in Jacob et al., CVPR 2018); scales of weights follow
    the weights, those of activations stay.

    The scales are in every checkpoint, and in the network's file.
    """

    def __init__(self, frames: int, run_dir: Path):
        self.frames, self.dense_file = frames, run_dir / FLOAT
        self.scales: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"scales": self.scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scales = state["scales"]

    def metadata(self) -> dict[str, Any]:
        return {SCALES: self.scales}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # Part of the convolution's weight from here on. Now, because DDP waits for each gradient that it saw announced.
        for norm in module.modules():
            if isinstance(norm, BatchNorm):
                norm.weight.requires_grad_(False)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DepthModule)
        self.follow(trainer.global_step, module, trainer.datamodule, trainer)  # type: ignore[attr-defined]

    def follow(self, step: int, module: DepthModule, data: DepthData, trainer: L.Trainer | None = None) -> None:
        """Begins, whatever the step: anew, or with the folded weights and scales of a checkpoint."""
        model = module.model
        module.freeze_batchnorm = True
        module.eval()
        if not self.scales:
            rescale(model)  # now: the scales of activations, which are measured next, stay
            if trainer is None or trainer.is_global_zero:
                save_model(model, self.dense_file)
            fold_batchnorm(model)
            device = next(model.parameters()).device
            samples = data.calibration(self.frames)
            scales = activation_scales(model, (sample["image"][None].to(device) for sample in samples))
            self.scales = trainer.strategy.broadcast(scales) if trainer else scales
        fake_quantize(model, self.scales)
        for layer in convolutions(model).values():
            _hold_zeros(layer.weight)
        module.train()


def _hold_zeros(weight: Tensor) -> None:
    """Weights that pruning zeroed stay zero: without a gradient AdamW does not move them."""
    kept = weight != 0
    if not kept.all():
        weight.register_hook(lambda gradient: gradient * kept)
