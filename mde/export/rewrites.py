"""Rewrites that make a network faster and change nothing it computes."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mde.models.dpt import StandardisedConv2d
from mde.models.midas_small import Head
from mde.models.network import DepthNetwork
from mde.models.scale import rescale


def deployable(model: DepthNetwork, same_kernels: bool = False) -> nn.Module:
    """A copy of `model`, dense or pruned, as an engine should run it: in eval mode, every BatchNorm folded into the
    convolution before it, kernels standardised once and for all, 1 x 1 convolutions before upsampling, attention as
    matrix products, the head's doubling inside its convolution where its border allows that, maps that half precision
    holds (mde.models.scale). `model` itself is untouched. A BatchNorm that no convolution feeds alone (GuideDepth's
    pyramid normalises sums) stays.

    same_kernels  no convolution gets another shape or scale: it was trained to be rounded to INT8 as it is
    """
    rewritten = copy.deepcopy(model).eval().requires_grad_(False)
    if not same_kernels:
        rescale(rewritten)
    module: Any
    for name, module in list(rewritten.named_modules()):
        if hasattr(module, "reference"):
            module.reference = False
        if isinstance(module, StandardisedConv2d):
            rewritten.set_submodule(name, module.folded())
        if isinstance(module, Attention):
            # Engines have no operator for it, and what exporters make of it differs.
            module.fused_attn = False  # type: ignore[misc]
        foldable = isinstance(module, Head) and not module.align_corners and module.conv2.padding_mode == "replicate"
        if foldable and not same_kernels:
            rewritten.set_submodule(name, DoublingHead(module))
    for norm_name, conv in normalised_convolutions(rewritten).items():
        norm: Any = rewritten.get_submodule(norm_name)
        conv.weight, conv.bias = _fused(conv, norm)
        # timm's BatchNormAct2d carries the activation that follows it.
        rewritten.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
    return rewritten


class DoublingHead(nn.Module):
    """`Head` of border="replicate", with bilinear doubling and the 3 x 3 convolution after it as one convolution.

    A pixel of the doubled map u lies between two of the map x: u[2i] = (x[i-1] + 3 x[i]) / 4 and u[2i+1] = (3 x[i] +
    x[i+1]) / 4, in both directions. Three successive values of u see three of x, so that each of the four pixels which
    an x becomes has a 3 x 3 kernel over x of its own. Multiply-adds stay as many but for the 1 x 1 convolution's, a
    small part; what engines are slow at, resizing and large maps of few channels, goes. Beyond the edge both know the
    outermost pixel alone.
    """

    KERNELS = torch.tensor(  # of u[2i] and of u[2i+1]: x[i-1], x[i], x[i+1] by the three values of u
        [[[3, 1, 0], [1, 3, 3], [0, 0, 1]], [[1, 0, 0], [3, 3, 1], [0, 1, 3]]]
    )

    @torch.no_grad()
    def __init__(self, head: Head) -> None:
        super().__init__()
        old2, old3 = head.conv2, head.conv3
        width, kernels = old2.out_channels, self.KERNELS.to(old2.weight) / 4
        self.conv1 = head.conv1
        self.conv2 = nn.Conv2d(old2.in_channels, 4 * width, 3)
        self.conv3 = nn.Conv2d(4 * width, 4, 1)
        self.to(old2.weight).requires_grad_(False)
        of_pixels = torch.einsum("prt,oitu,qsu->pqoirs", kernels, old2.weight, kernels)
        self.conv2.weight.copy_(of_pixels.flatten(0, 2))
        self.conv2.bias.copy_(old2.bias.repeat(4))  # type: ignore[union-attr]
        self.conv3.weight.copy_(torch.block_diag(*[old3.weight[:, :, 0, 0]] * 4)[:, :, None, None])
        self.conv3.bias.copy_(old3.bias.repeat(4))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        # Slices and not padding, which LiteRT is slower at than at all that is saved here.
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], 3)
        return F.pixel_shuffle(F.relu(self.conv3(F.relu(self.conv2(x)))), 2)


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
