"""Training: the LightningModule, its callbacks, and the run that `train.py` starts."""

from mde.training.run import train

__all__ = ["train"]
