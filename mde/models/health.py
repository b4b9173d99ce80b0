"""What a look inside a network tells of its health, beside what it predicts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mde.models.midas_small import Fusion

LOST = 0.001  # share of a sum below which half precision, 11 bits, rounds a skip away


@contextmanager
def skip_shares(network: nn.Module) -> Iterator[dict[str, float]]:
    """What passes through `network` inside the block: each fusion with a skip, by name -> the skip's share of what is
    added, mean |skip| / (mean |skip| + mean |deep|), of the last image batch. Empty for a network without fusions.
    """
    shares: dict[str, float] = {}
    skips: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: skips.update({name: output.detach()})

    def compare(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            skip = skips.pop(name).double()
            deep = inputs[0].detach().double() - skip
            skip_mean, deep_mean = float(skip.abs().mean()), float(deep.abs().mean())
            shares[name] = skip_mean / (skip_mean + deep_mean) if skip_mean else 0.0

        return hook

    hooks = []
    for name, fusion in network.named_modules():
        if isinstance(fusion, Fusion) and fusion.refine_skip is not None:
            hooks.append(fusion.refine_skip.register_forward_hook(keep(name)))
            hooks.append(fusion.refine_sum.register_forward_pre_hook(compare(name)))
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def inner_health(network: nn.Module, images: Tensor) -> dict[str, Any]:
    """For `images` (N, 3, H, W), normalised: `skip_shares`, and the largest magnitude that any layer puts out, with
    that layer's name; None for it where the network computes no numbers.
    """
    largest, where = 0.0, ""

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal largest, where
            if isinstance(output, Tensor) and not (most := float(output.abs().amax())) <= largest:
                largest, where = most, name

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        with skip_shares(network) as shares:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {"skip_share": shares, "largest": largest if math.isfinite(largest) else None, "largest_in": where}


def lost_skips(shares: dict[str, float]) -> list[str]:
    """A sentence for each skip that rounding takes away."""
    return [
        f"{name}: its skip is {share:.1g} of the sum, which half precision rounds away; train on, with the scale held"
        for name, share in shares.items()
        if share < LOST
    ]
