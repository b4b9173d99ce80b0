"""What a network needs, counted: multiply-adds, and memory by the rule of a widespread tool."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mde.models.network import DepthNetwork, evaluating


def multiply_adds(model: DepthNetwork, size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and matrix products of one forward pass with one image of `size`."""
    # As matrix products: the counter knows no formula for the CPU's fused attention.
    products = sdpa_kernel(SDPBackend.MATH)
    with evaluating(model), torch.no_grad(), products, FlopCounterMode(display=False) as counter:
        model(_image(model, size))
    return counter.get_total_flops() // 2


def listed_memory(model: DepthNetwork, size: tuple[int, int]) -> float:
    """Mebibytes (2^20 bytes) that torchsummary 1.5 calls "total size", for one image of `size` (height, width).

    Input + 2 x the outputs of all modules + the weights and biases of those that run, 4 bytes each. Containers
    (Sequential, ModuleList) and the network itself are left out, a module with several parents counts once for each.
    It is no measurement: nothing is ever freed in it, a function's result is free, and the same network written with
    other modules has another figure.
    """
    elements = 0

    def add(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal elements
        elements += sum(tensor.numel() for tensor in tree_leaves(output))

    hooks = [
        module.register_forward_hook(add)
        for _, module in model.named_modules(remove_duplicate=False)
        if module is not model and not isinstance(module, (nn.Sequential, nn.ModuleList))
    ]
    image = _image(model, size)
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return 4 * (image.numel() + 2 * elements + layer_parameters(model)) / 2**20


def layer_parameters(model: nn.Module) -> int:
    """Weights and biases alone, as the paper counts: without class token and position embedding."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith((".weight", ".bias")))


def _image(model: DepthNetwork, size: tuple[int, int]) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
