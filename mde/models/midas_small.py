"""MiDaS v2.1 small: an EfficientNet-Lite encoder and a fusion decoder (Ranftl et al., TPAMI 2022).

The published network differs in two ways from the one built here. Its deepest fusion block owns a residual unit that
no input reaches (4,719,616 parameters): it is not built. And each fusion block there upsamples before its 1 x 1
convolution; here the convolution comes first, on a quarter of the pixels, unless `reference=True`. Both steps are
linear and the bilinear weights sum to one, so they commute exactly, the bias included. A third difference is a choice:
with border="replicate" the head's second convolution sees, beyond the picture's edge, its outermost pixels instead of
zeros. The outermost pixels of the answer change, and engines can do the doubling before it inside that convolution
(mde.export.rewrites).
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.network import IMAGENET_MEAN, IMAGENET_STD, DepthNetwork, Scaled, closing_relu, in_float32

ENCODERS = ("lite0", "lite1", "lite2", "lite3", "lite4")
BORDERS = ("zeros", "replicate")
WIDTHS = (64, 128, 256, 512)  # decoder channels at 1/4, 1/8, 1/16 and 1/32 of the input's size


class SamePadConv2d(nn.Conv2d):
    """Strided convolution with TensorFlow's SAME padding, for even input sizes: the padding is a constant.

    TensorFlow pads an even side by kernel - stride in all and puts the odd pixel at the end. timm's Conv2dSame
    computes this from the input's size at run time, which TensorRT and TFLite cannot take. Same parameters, same
    names, same result.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "SamePadConv2d":
        """A copy of timm's `conv` (square kernel, no dilation) that shares its parameters."""
        size, stride = conv.kernel_size[0], conv.stride[0]
        bias = conv.bias is not None
        copy = cls(conv.in_channels, conv.out_channels, size, stride, groups=conv.groups, bias=bias, device="meta")
        copy.weight, copy.bias = conv.weight, conv.bias
        return copy

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding of (N, C, H, W), both sides multiples of `stride`, with zeros."""
    total = max(0, kernel - stride)
    before, after = total // 2, total - total // 2
    return F.pad(x, (before, after, before, after)) if total else x


def build_encoder(encoder: str) -> nn.Module:
    """timm's `tf_efficientnet_<encoder>`, random weights; returns features at 1/4, 1/8, 1/16, 1/32 of the image."""
    if encoder not in ENCODERS:
        raise MdeError(f"encoder={encoder}: unknown; choose one of {', '.join(ENCODERS)}")
    features = timm.create_model(
        f"tf_efficientnet_{encoder}", features_only=True, pretrained=False, out_indices=(1, 2, 3, 4)
    )
    for name, module in list(features.named_modules()):
        if type(module).__name__ == "Conv2dSame":
            features.set_submodule(name, SamePadConv2d.of(module))
    return features


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3. Nothing in place: callers use x again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """One decoder step: adds the skip to the deeper features, refines the sum, doubles its size, changes its width."""

    def __init__(self, channels: int, out_channels: int, has_skip: bool, reference: bool) -> None:
        super().__init__()
        self.reference = reference
        self.refine_skip = ResidualUnit(channels) if has_skip else None
        self.refine_sum = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, out_channels, 1)

    def forward(self, deep: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.refine_skip is not None:
            deep = deep + self.refine_skip(skip)
        x = self.refine_sum(deep)
        return self.project(_double(x)) if self.reference else _double(self.project(x))


class Head(nn.Module):
    """Fused features at 1/2 of the input's size -> inverse depth at its full size, at least 0.

    align_corners  of the upsampling: MiDaS v3 sets it, v2.1 does not
    border         what the second convolution sees beyond the edge, see BORDERS
    """

    def __init__(self, channels: int, align_corners: bool = False, border: str = "zeros") -> None:
        super().__init__()
        self.align_corners = align_corners
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, 32, 3, padding=1, padding_mode=border)  # type: ignore[arg-type]
        self.conv3 = nn.Conv2d(32, 1, 1)
        # A fresh network predicts 1 nearly everywhere, well inside the closing ReLU's live side.
        nn.init.ones_(self.conv3.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.conv3.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.conv1(x), scale_factor=2.0, mode="bilinear", align_corners=self.align_corners)
        x = F.relu(self.conv2(x))
        return closing_relu(in_float32(self.conv3, x), self.training)


class Decoder(nn.Module):
    """Encoder features at 1/4, 1/8, 1/16, 1/32 -> inverse depth at full size."""

    def __init__(self, encoder_channels: list[int], reference: bool, border: str) -> None:
        super().__init__()
        w1, w2, w3, w4 = WIDTHS
        c1, c2, c3, c4 = encoder_channels
        self.reduce1 = nn.Conv2d(c1, w1, 3, padding=1, bias=False)
        self.reduce2 = nn.Conv2d(c2, w2, 3, padding=1, bias=False)
        self.reduce3 = nn.Conv2d(c3, w3, 3, padding=1, bias=False)
        self.reduce4 = nn.Conv2d(c4, w4, 3, padding=1, bias=False)
        self.fusion4 = Fusion(w4, w3, has_skip=False, reference=reference)
        self.fusion3 = Fusion(w3, w2, has_skip=True, reference=reference)
        self.fusion2 = Fusion(w2, w1, has_skip=True, reference=reference)
        self.fusion1 = Fusion(w1, w1, has_skip=True, reference=reference)
        self.head = Head(w1, border=border)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor, f4: Tensor) -> Tensor:
        x = self.fusion4(self.reduce4(f4))
        x = self.fusion3(x, self.reduce3(f3))
        x = self.fusion2(x, self.reduce2(f2))
        x = self.fusion1(x, self.reduce1(f1))
        return self.head(x)


class MidasSmall(DepthNetwork):
    """MiDaS v2.1 small. `reference=True` keeps the published order of operations; both orders have the same parameters.

    encoder  lite0 ... lite4; the published network is lite3 (16,600,929 parameters)
    border   zeros, as published, or replicate; weights fit both
    """

    name = "midas_small"
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    taps = tuple(f"decoder.fusion{level}.project" for level in (4, 3, 2, 1))
    never_executed = 4_719_616  # the deepest fusion block's first residual unit

    def __init__(self, encoder: str = "lite3", reference: bool = False, border: str = "zeros") -> None:
        super().__init__()
        if border not in BORDERS:
            raise MdeError(f"model.border={border}: unknown; choose one of {', '.join(BORDERS)}")
        self.encoder_name, self.reference, self.border = encoder, reference, border
        features: Any = build_encoder(encoder)
        self.encoder = features
        self.decoder = Decoder(features.feature_info.channels(), reference, border)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as they are written into a file's metadata."""
        return {"encoder": self.encoder_name, "reference": self.reference, "border": self.border}

    def _predict(self, image: Tensor) -> Tensor:
        return self.decoder(*self.encoder(image))

    def scaled(self) -> list[Scaled]:
        return fusion_scaled(self)


def fusion_scaled(network: nn.Module) -> list[Scaled]:
    """Of a decoder that fuses four levels: each level has a factor of its own, and so have the maps of the head."""
    layers = []
    for level in (4, 3, 2, 1):
        fusion, at = f"decoder.fusion{level}", f"level{level}"
        layers.append(Scaled(f"decoder.reduce{level}", "", at))
        for unit in (f"{fusion}.refine_skip", f"{fusion}.refine_sum"):
            layers += [Scaled(f"{unit}.conv{number}", at, at) for number in (1, 2)]
        layers.append(Scaled(f"{fusion}.project", at, f"level{level - 1}"))
    layers.append(Scaled("decoder.head.conv1", "level0", "head1"))
    layers.append(Scaled("decoder.head.conv2", "head1", "head2"))
    layers.append(Scaled("decoder.head.conv3", "head2", "output"))
    there = dict(network.named_modules())  # the deepest level has no skip, and units can have been taken out
    return [layer for layer in layers if layer.name in there]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
