"""The scale of a network's numbers, which half precision must hold: it ends at 65,504.

Inverse depth is relative, and the losses do not see its scale: nothing else keeps a trained network's maps from any
size. Convolution (its bias along), ReLU, addition and bilinear enlargement commute with a positive factor, so that
each group of maps that are added to each other may have a factor of its own, undone in the weights that read them. A
power of two changes no digit of a float: the prediction is the old one times a power of two, to the last bit.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mde.models.network import DepthNetwork, Scaled, evaluating

# The largest magnitude in a group of maps, on `probe_images`: where it comes to lie (at most), and what is left alone,
# so that what one processor scaled another one, whose sums round differently, does not scale again.
PEAK = 256.0
LEFT_ALONE = 2**-6, 1024.0
PROBE = 128  # pixels of a side


@torch.no_grad()
def rescale(model: DepthNetwork) -> None:
    """Brings the maps of `model`, in float32, to magnitudes that half precision holds, in place; exact. A network whose
    maps are there already stays as it is.
    """
    for name, factor in parameter_factors(model, powers_of_two(model)).items():
        model.get_parameter(name).mul_(factor)


def powers_of_two(model: DepthNetwork) -> dict[str, float]:
    """Group of maps -> the factor that it should have, see `rescale`; all 1 where the network predicts no numbers."""
    in_float = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    probed = model if in_float else copy.deepcopy(model).float()
    peaks: dict[str, float] = {}
    for layer, magnitude in magnitudes(probed, probe_images(probed)):
        peaks[layer.writes] = max(peaks.get(layer.writes, 0.0), magnitude)
    low, high = LEFT_ALONE
    if not all(map(math.isfinite, peaks.values())):
        return dict.fromkeys(peaks, 1.0)
    return {
        group: 1.0 if peak == 0 or low <= peak <= high else 2.0 ** math.floor(math.log2(PEAK / peak))
        for group, peak in peaks.items()
    }


def parameter_factors(model: DepthNetwork, powers: dict[str, float]) -> dict[str, float]:
    """Parameter -> what it is multiplied with, of those that change."""
    factors = {}
    for layer in model.scaled():
        module: Any = model.get_submodule(layer.name)
        written = powers.get(layer.writes, 1.0)
        factors[f"{layer.name}.weight"] = written / powers.get(layer.reads, 1.0)
        if module.bias is not None:
            factors[f"{layer.name}.bias"] = written
    return {name: factor for name, factor in factors.items() if factor != 1}


def input_factors(model: DepthNetwork, powers: dict[str, float]) -> dict[str, float]:
    """Layer -> what its input is multiplied with."""
    return {layer.name: powers.get(layer.reads, 1.0) for layer in model.scaled()}


@torch.no_grad()
def magnitudes(model: DepthNetwork, images: Tensor) -> list[tuple[Scaled, float]]:
    """Each layer of `model.scaled()` beside the largest magnitude in its output for `images` (N, 3, H, W)."""
    with evaluating(model), scaled_maps(model) as maps:
        model(images)
    return [(layer, float(maps[layer.name].abs().amax())) for layer in model.scaled()]


@contextmanager
def scaled_maps(network: DepthNetwork) -> Iterator[dict[str, Tensor]]:
    """What the layers in `network.scaled()` put out inside the block, by name, in their order."""
    maps: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda _module, _inputs, output: maps.update({name: output})

    layers = [layer.name for layer in network.scaled()]
    hooks = [network.get_submodule(name).register_forward_hook(remember(name)) for name in layers]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def probe_images(model: nn.Module) -> Tensor:
    """Images that any machine can make: a smooth one, an empty one, and noise; (3, 3, PROBE, PROBE), normalised."""
    parameter = next(model.parameters())
    y, x = torch.meshgrid(torch.linspace(-1, 1, PROBE), torch.linspace(-1, 1, PROBE), indexing="ij")
    smooth = torch.stack([torch.sin(5 * x) + y, torch.cos(7 * y) - x, torch.sin(9 * x * y)])
    noise = 2 * torch.rand(3, PROBE, PROBE, generator=torch.Generator().manual_seed(0)) - 1
    return torch.stack([smooth, torch.zeros_like(smooth), 2 * noise]).to(parameter)
