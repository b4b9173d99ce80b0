"""The networks that come with the project, in `weights/`, each beside its model card."""

import os
from pathlib import Path

from mde.errors import MdeError

SHIPPED = "shipped"
FOLDER = Path(__file__).resolve().parents[2] / "weights"
DENSE = FOLDER / "midas_small.safetensors"


def located(weights: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """`weights` as `build_model` takes them, with the path of the dense shipped network for "shipped".

    MdeError where it is not there: the package was installed without its repository.
    """
    if weights != SHIPPED:
        return weights
    if not DENSE.is_file():
        raise MdeError(f"weights=shipped: {DENSE} is missing; run from a clone of the project, or give weights=PATH")
    return DENSE
