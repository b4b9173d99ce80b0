"""Rewrites that make a network faster and change nothing it computes."""

import copy
from typing import Any

import torch
from timm.layers import Attention
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mde.models.dpt import StandardisedConv2d
from mde.models.network import DepthNetwork


def deployable(model: DepthNetwork) -> nn.Module:
    """A copy of `model`, dense or pruned, as an engine should run it: in eval mode, every BatchNorm folded into the
    convolution before it, kernels standardised once and for all, 1 x 1 convolutions before upsampling, attention as
    matrix products. `model` itself is untouched. A BatchNorm that no convolution feeds alone (GuideDepth's pyramid
    normalises sums) stays.
    """
    rewritten = copy.deepcopy(model).eval().requires_grad_(False)
    module: Any
    for name, module in list(rewritten.named_modules()):
        if hasattr(module, "reference"):
            module.reference = False
        if isinstance(module, StandardisedConv2d):
            rewritten.set_submodule(name, module.folded())
        if isinstance(module, Attention):
            # Engines have no operator for it, and what exporters make of it differs.
            module.fused_attn = False  # type: ignore[misc]
    for norm_name, conv in normalised_convolutions(rewritten).items():
        norm: Any = rewritten.get_submodule(norm_name)
        conv.weight, conv.bias = _fused(conv, norm)
        # timm's BatchNormAct2d carries the activation that follows it.
        rewritten.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
    return rewritten


@torch.no_grad()
def fold_batchnorm(model: DepthNetwork) -> None:
    """Folds every BatchNorm into the convolution before it, in place, and leaves it there as the addition of a bias:
    class, names and file of the network stay. For a network in eval mode, whose BatchNorm is not trained any more.
    """
    for norm_name, conv in normalised_convolutions(model).items():
        norm: Any = model.get_submodule(norm_name)
        weight, bias = _fused(conv, norm)
        conv.weight.copy_(weight)
        if conv.bias is not None:
            conv.bias.zero_()
        norm.bias.copy_(bias)
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        # In float32 the sum with eps is 1 again, exactly: what is folded twice has the same weights to the last bit.
        norm.running_var.fill_(1 - norm.eps)


def _fused(conv: nn.Conv2d, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of the convolution that computes both."""
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def normalised_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Each BatchNorm's name -> the convolution whose output it normalises, observed on one small image.

    Observed rather than read off the modules' names or order, which promise nothing about what feeds what.
    """
    found: dict[str, nn.Conv2d] = {}

    def mark(conv: nn.Module, _inputs: Any, output: Any) -> None:
        output.made_by = conv

    def look_up(name: str) -> Any:
        def hook(_norm: nn.Module, inputs: Any) -> None:
            if hasattr(inputs[0], "made_by"):
                found[name] = inputs[0].made_by

        return hook

    hooks = [module.register_forward_hook(mark) for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks += [
        module.register_forward_pre_hook(look_up(name))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    parameter = next(model.parameters())
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32, device=parameter.device, dtype=parameter.dtype))
    for hook in hooks:
        hook.remove()
    return found
