"""`prune.py`: a trained network in, a pruned one out."""

from pathlib import Path

from omegaconf import DictConfig

from mde.models import trained_size
from mde.training import train


def prune(config: DictConfig) -> Path:
    """Prunes config.checkpoint, recovers it over trainer.max_steps (none with recovery=none), and evaluates both.

    Returns the run directory. size=null is the size that the network was trained at.
    """
    if config.resume is None:
        if config.size is None:
            config.size = list(trained_size(config.checkpoint, config.model.name))
        if config.recovery.kind == "none":
            config.trainer.max_steps = 0
    return train(config)
