"""FastDepth: a MobileNet encoder and a decoder of depthwise separable convolutions (Wofk et al., ICRA 2019).

The variant that its authors deployed, MobileNet-NNConv5 with depthwise decoder and additive skips, dense or at the
widths that NetAdapt left of it. Published to predict metric depth; here it predicts inverse depth, trained with our
losses. The predicting 1 x 1 convolution comes before the last doubling, on a quarter of the pixels, unless
`reference=True`: it and what follows it act on each pixel alone, and the doubling repeats pixels, so both orders
compute the same.
"""

from typing import Any

import torch.nn.functional as F
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.network import IMAGENET_MEAN, IMAGENET_STD, DepthNetwork, Scaled, closing_relu, in_float32

STAGES = (1, 2, 2, 6, 2)  # blocks of the encoder at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size
# Channels that the stem and each block write, and each step of the decoder, deepest first. A skip's two ends are alike.
DENSE = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), (512, 256, 128, 64, 32)
PRUNED = (16, 56, 88, 120, 144, 256, 408, 376, 272, 288, 296, 328, 480, 512), (200, 256, 120, 56, 16)
VARIANTS = {"dense": DENSE, "pruned": PRUNED}


def build_encoder(widths: tuple[int, ...]) -> EfficientNetFeatures:
    """timm's MobileNet v1 at these widths, random weights; returns features at 1/2, 1/4, 1/8 and 1/32 of the image."""
    stem, blocks = widths[0], iter(widths[1:])
    stages = [
        [f"dsa_r1_k3_s{2 if first and stage else 1}_c{next(blocks)}" for first in [True] + [False] * (count - 1)]
        for stage, count in enumerate(STAGES)
    ]
    return EfficientNetFeatures(decode_arch_def(stages), (0, 1, 2, 4), stem_size=stem, act_layer=nn.ReLU6)


class Step(nn.Module):
    """A depthwise 5 x 5 and a 1 x 1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        for conv in (self.depthwise, self.pointwise):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(x)))


class Head(nn.Module):
    """Features -> inverse depth at their size, at least 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(1)
        # A fresh network predicts about 1, well inside the closing ReLU's live side.
        nn.init.constant_(self.norm.weight, 0.1)
        nn.init.ones_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return closing_relu(in_float32(lambda x: self.norm(self.conv(x)), x), self.training)


class Decoder(nn.Module):
    """Encoder features at 1/2, 1/4, 1/8, 1/32 -> inverse depth at full size."""

    def __init__(self, channels: int, widths: tuple[int, ...], reference: bool) -> None:
        super().__init__()
        self.reference = reference
        w5, w4, w3, w2, w1 = widths
        self.step5 = Step(channels, w5)
        self.step4 = Step(w5, w4)
        self.step3 = Step(w4, w3)
        self.step2 = Step(w3, w2)
        self.step1 = Step(w2, w1)
        self.head = Head(w1)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor, f5: Tensor) -> Tensor:
        x = _double(self.step5(f5))
        x = _double(self.step4(x)) + f3
        x = _double(self.step3(x)) + f2
        x = _double(self.step2(x)) + f1
        x = self.step1(x)
        return self.head(_double(x)) if self.reference else _double(self.head(x))


class FastDepth(DepthNetwork):
    """FastDepth. `reference=True` keeps the published order of operations; both orders have the same parameters.

    variant  "dense" (3,960,930 parameters, published as 3.96 M) or "pruned", the widths that its authors deployed
             (1,360,786, of which 1,343,664 are the published 1.34 M convolution weights)
    """

    name = "fastdepth"
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    taps = ("decoder.step5.norm2", "decoder.step4.norm2", "decoder.step3.norm2", "decoder.step2.norm2")

    def __init__(self, variant: str = "dense", reference: bool = False) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise MdeError(f"model.variant={variant}: unknown; choose one of {', '.join(VARIANTS)}")
        self.variant, self.reference = variant, reference
        encoder, decoder = VARIANTS[variant]
        self.encoder = build_encoder(encoder)
        self.decoder = Decoder(encoder[-1], decoder, reference)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as they are written into a file's metadata."""
        return {"variant": self.variant, "reference": self.reference}

    def _predict(self, image: Tensor) -> Tensor:
        return self.decoder(*self.encoder(image))

    def scaled(self) -> list[Scaled]:
        """The last layer alone: BatchNorm holds the others."""
        return [Scaled("decoder.head.norm", "", "output")]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
