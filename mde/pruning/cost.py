"""What a network costs as a function of its widths: parameters, multiply-adds and elements moved, exactly, without
building it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import Attention
from torch import nn

from mde.models.build import dense_of
from mde.models.network import DepthNetwork, evaluating
from mde.pruning.structure import IN, OUT, WRITERS, ChannelGroup, Member, channels, depthwise

Widths = tuple[
    tuple[str | int, ...], int
]  # groups and fixed widths, which add up, and how many channels are one of a group


@dataclass(frozen=True)
class Layer:
    """A convolution, linear layer, attention or norm: its own widths, or the groups that set them."""

    name: str
    reads: tuple[str | int, ...]  # groups and fixed widths, which add up
    writes: tuple[str | int, ...]
    area: int  # of the kernel; 1 for a linear layer, 0 for what has none
    height: int  # of the output, in pixels (of the input, if transposed); tokens of a linear layer
    width: int
    stride: int
    per_channel: int  # parameters that each channel written has besides the weights
    depthwise: bool
    transposed: bool = False
    read_unit: int = 1  # channels that it reads for each one of the group
    written_unit: int = 1
    products: int = 0  # multiply-adds of activations with one another, for each channel and pixel written

    def parameters(self, widths: Mapping[str, int]) -> int:
        return self._weights(widths) + self.per_channel * self.written(widths)

    def macs(self, widths: Mapping[str, int]) -> int:
        return (self._weights(widths) + self.products * self.written(widths)) * self.height * self.width

    def moved(self, widths: Mapping[str, int]) -> int:
        """Elements of the maps that it reads and writes."""
        fine, coarse = self.read(widths), self.written(widths)
        if self.transposed:
            fine, coarse = coarse, fine
        return self.height * self.width * (self.stride**2 * fine + coarse)

    def read(self, widths: Mapping[str, int]) -> int:
        """Channels that it reads."""
        return sum(self.read_unit * widths[part] if isinstance(part, str) else part for part in self.reads)

    def written(self, widths: Mapping[str, int]) -> int:
        """Channels that it writes."""
        return sum(self.written_unit * widths[part] if isinstance(part, str) else part for part in self.writes)

    def _weights(self, widths: Mapping[str, int]) -> int:
        return self.area * self.written(widths) * (1 if self.depthwise else self.read(widths))


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of one image."""

    parameters: int
    macs: int


def layers_of(model: DepthNetwork, groups: list[ChannelGroup], size: tuple[int, int]) -> list[Layer]:
    """Everything in `model` that has parameters or multiplies, for images of `size` (height, width)."""
    shapes = _shapes(model, size)
    parts: dict[Member, list[ChannelGroup]] = {}
    for group in groups:
        for member in group.members:
            parts.setdefault(member, []).append(group)

    def widths(member: Member, width: int) -> Widths:
        own = parts.get(member, [])
        unit = width // own[0].width if own and own[0].block > 1 else 1
        fixed = width - unit * sum(group.width for group in own)
        return (*(group.name for group in own), *([fixed] if fixed else [])), unit

    layers = []
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, WRITERS):
            written = widths((name, OUT), channels(module, OUT))
            read = written if depthwise(module) else widths((name, IN), channels(module, IN))
            layers.append(_layer(name, module, read, written, shapes[name]))
        elif isinstance(module, Attention):
            tokens, (heads,) = shapes[name][0][1], parts[f"{name}.qkv", OUT]
            # Each channel of each token: its share of one score a token, and of the mean of all tokens' values.
            layer = Layer(name, (heads.name,), (heads.name,), 0, tokens, 1, 1, 0, True, products=2 * tokens)
            layers.append(replace(layer, read_unit=3 * heads.block, written_unit=heads.block))
        elif isinstance(module, nn.BatchNorm2d):
            normalised, _ = widths((name, OUT), module.num_features)
            layers.append(Layer(name, normalised, normalised, 0, 0, 0, 1, 2, True))
        elif own:
            layers.append(Layer(name, (own,), (own,), 0, 0, 0, 1, 1, True))
    return layers


def _layer(name: str, module: Any, read: Widths, written: Widths, shapes: tuple[torch.Size, torch.Size]) -> Layer:
    """Of a convolution or linear layer. shapes: of its input and its output."""
    bias, transposed = int(module.bias is not None), isinstance(module, nn.ConvTranspose2d)
    if isinstance(module, nn.Linear):
        height, width, area, stride = shapes[1][1:-1].numel(), 1, 1, 1
    else:
        height, width = shapes[0 if transposed else 1][2:]
        area, stride = module.kernel_size[0] * module.kernel_size[1], module.stride[0]
    layer = Layer(name, read[0], written[0], area, height, width, stride, bias, depthwise(module), transposed)
    return replace(layer, read_unit=read[1], written_unit=written[1])


def _shapes(model: DepthNetwork, size: tuple[int, int]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Module -> shapes of its first input and of its output."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            shapes[name] = (inputs[0].shape, output.shape)

        return hook

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Attention)
    hooks = [m.register_forward_hook(remember(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    finally:
        for handle in hooks:
            handle.remove()
    return shapes


def cost(layers: list[Layer], widths: Mapping[str, int]) -> Cost:
    """Of the network with those widths (group name -> channels)."""
    return Cost(sum(layer.parameters(widths) for layer in layers), sum(layer.macs(widths) for layer in layers))


def dense_widths(model: DepthNetwork, groups: list[ChannelGroup]) -> dict[str, int]:
    """Group name -> the channels it had before any pruning."""
    dense = dense_of(model)
    return {
        group.name: group.width * channels(dense.get_submodule(group.name), OUT) // channels(layer, OUT)
        for group in groups
        for layer in (model.get_submodule(group.name),)
    }
