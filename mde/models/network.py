"""What every network here is, beside an nn.Module."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from mde.errors import MdeError


class DepthNetwork(nn.Module):
    """Predicts inverse depth: float32 (N, 3, H, W), normalised by `mean` and `std`, -> float32 (N, 1, H, W), at least
    0.

    name     what `build_model` and a file's metadata call it
    mean     per channel (RGB in [0, 1]), with `std` the normalisation it was published with
    options  its constructor's arguments: class and options build the dense network again
    """

    name: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    @property
    def options(self) -> dict[str, Any]:
        raise NotImplementedError


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """The option `size` as (height, width). MdeError unless both are multiples of 32, as every network here needs."""
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
        raise MdeError(f"size={list(size)}: height and width as multiples of 32, for example size=[256,256]")
    return size[0], size[1]
