"""Networks: building, saving, loading."""

from mde.models.build import build_model
from mde.models.checkpoints import load_model, read_metadata, save_model, trained_size

__all__ = ["build_model", "load_model", "read_metadata", "save_model", "trained_size"]
