"""What a network costs as a function of its widths: parameters, multiply-adds and elements moved, exactly, without
building it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mde.models.build import dense_of
from mde.models.network import DepthNetwork
from mde.pruning.structure import IN, OUT, ChannelGroup


@dataclass(frozen=True)
class Layer:
    """A convolution or BatchNorm: its own widths, or the groups that set them."""

    name: str
    reads: str | int  # group, or fixed width
    writes: str | int
    area: int  # of the kernel; 0 for BatchNorm
    height: int  # of the output, in pixels
    width: int
    stride: int
    per_channel: int  # parameters that each channel written has besides the weights
    depthwise: bool

    def parameters(self, widths: Mapping[str, int]) -> int:
        return self._weights(widths) + self.per_channel * self.written(widths)

    def macs(self, widths: Mapping[str, int]) -> int:
        return self._weights(widths) * self.height * self.width

    def moved(self, widths: Mapping[str, int]) -> int:
        """Elements of the maps that it reads and writes."""
        pixels = self.height * self.width
        return pixels * (self.stride**2 * self.read(widths) + self.written(widths))

    def read(self, widths: Mapping[str, int]) -> int:
        """Channels that it reads."""
        return widths[self.reads] if isinstance(self.reads, str) else self.reads

    def written(self, widths: Mapping[str, int]) -> int:
        """Channels that it writes."""
        return widths[self.writes] if isinstance(self.writes, str) else self.writes

    def _weights(self, widths: Mapping[str, int]) -> int:
        return self.area * self.written(widths) * (1 if self.depthwise else self.read(widths))


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of one image."""

    parameters: int
    macs: int


def layers_of(model: DepthNetwork, groups: list[ChannelGroup], size: tuple[int, int]) -> list[Layer]:
    """Every layer of `model` that has parameters, for images of `size` (height, width)."""
    outputs: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: outputs.__setitem__(name, out.shape[2:]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    modes = [module.training for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training
    source = {member: group.name for group in groups for member in group.members}
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1
            writes = source.get((name, OUT), module.out_channels)
            reads = writes if depthwise else source.get((name, IN), module.in_channels)
            area = module.kernel_size[0] * module.kernel_size[1]
            bias = int(module.bias is not None)
            height, width = outputs[name]
            layers.append(Layer(name, reads, writes, area, height, width, module.stride[0], bias, depthwise))
        elif isinstance(module, nn.BatchNorm2d):
            writes = source.get((name, OUT), module.num_features)
            layers.append(Layer(name, writes, writes, 0, 0, 0, 1, 2, True))
    return layers


def cost(layers: list[Layer], widths: Mapping[str, int]) -> Cost:
    """Of the network with those widths (group name -> channels)."""
    return Cost(sum(layer.parameters(widths) for layer in layers), sum(layer.macs(widths) for layer in layers))


def dense_widths(model: DepthNetwork, groups: list[ChannelGroup]) -> dict[str, int]:
    """Group name -> the channels it had before any pruning."""
    dense = dense_of(model)
    return {group.name: dense.get_parameter(f"{group.name}.weight").shape[0] for group in groups}
