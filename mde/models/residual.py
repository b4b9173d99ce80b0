"""Blocks that add to what passes through them, and that can be taken out of a network for that reason."""

from collections.abc import Iterable

from torch import nn

from mde.models.midas_small import ResidualUnit
from mde.models.network import DepthNetwork


def residual_blocks(model: nn.Module) -> list[str]:
    """Names of those that can be taken out, an EfficientNet's and a fusion decoder's, in the order of the modules."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ResidualUnit) or getattr(module, "has_skip", False)  # timm's word
    ]


def take_out(model: DepthNetwork, names: Iterable[str]) -> None:
    """Takes the blocks `names` out of `model`, in place: what came in goes on as it is."""
    for name in names:
        model.set_submodule(name, nn.Identity(), strict=True)
        model.taken_out += (name,)
