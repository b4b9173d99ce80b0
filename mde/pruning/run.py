"""`prune.py`: a trained network in, a pruned one out."""

from pathlib import Path

from omegaconf import DictConfig

from mde.models import read_metadata
from mde.training import train


def prune(config: DictConfig) -> Path:
    """Prunes config.checkpoint, recovers it over trainer.max_steps (none with recovery=none), and evaluates both.

    Returns the run directory. size=null is the size that the network was trained at, 256 x 256 for official ones.
    """
    if config.resume is None:
        if config.size is None:
            own = Path(config.checkpoint).suffix == ".safetensors"
            config.size = list(read_metadata(config.checkpoint).get("input", (256, 256))) if own else [256, 256]
        if config.recovery.kind == "none":
            config.trainer.max_steps = 0
    return train(config)
