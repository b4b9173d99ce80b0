"""`prune.py`: a trained network in, a pruned one out."""

from pathlib import Path

from omegaconf import DictConfig

from mde.errors import MdeError
from mde.training import train


def prune(config: DictConfig) -> Path:
    """Prunes config.checkpoint, recovers it over trainer.max_steps (none with recovery=none), and evaluates both.

    Returns the run directory. MdeError for other weights than the checkpoint's.
    """
    if config.resume is None:
        if config.weights != config.checkpoint:
            raise MdeError(f"weights={config.weights}: what is pruned is checkpoint={config.checkpoint}; leave it out")
        if config.recovery.kind == "none":
            config.trainer.max_steps = 0
    return train(config)
