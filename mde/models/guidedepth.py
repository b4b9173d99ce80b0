"""GuideDepth: a dual-resolution encoder and a decoder guided by the image (Rudolph et al., ICRA 2022).

The encoder is DDRNet-23-slim (Hong et al., 2021) without its second segmentation head. Published to predict metric
depth without bounds; here it predicts inverse depth behind a closing ReLU, trained with our losses. The
squeeze-and-excitation gates are written as 1 x 1 convolutions of one pixel instead of linear layers, and what the
pyramid pools to one pixel is broadcast instead of upsampled: the same parameters, the same result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.network import IMAGENET_MEAN, IMAGENET_STD, DepthNetwork, Scaled, closing_relu, in_float32

PLANES = 32  # channels of the encoder at 1/4 of the input's size
BRANCH = 128  # channels of each branch of the pyramid
WINDOWS = (5, 9, 17)  # over which the pyramid averages, beside the whole map
VARIANTS = {"full": (64, 32, 16), "small": (32, 8, 4)}  # channels of the decoder at 1/8, 1/4 and 1/2


def conv_norm(channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    """A convolution that keeps the size, but for its stride, and a BatchNorm."""
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(out_channels)]


def norm_conv(channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """BatchNorm and ReLU first, then the convolution."""
    convolution = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), convolution)


class Residual(nn.Module):
    """The sum of a branch of convolutions and a shortcut, which is the identity where shapes allow it."""

    def __init__(self, branch: list[nn.Module], channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        same = channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Sequential(*conv_norm(channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))


def basic(channels: int, out_channels: int, stride: int = 1) -> Residual:
    """Two 3 x 3 convolutions."""
    first = conv_norm(channels, out_channels, 3, stride)
    return Residual([*first, nn.ReLU(), *conv_norm(out_channels, out_channels, 3)], channels, out_channels, stride)


def bottleneck(channels: int, stride: int = 1) -> Residual:
    """1 x 1, 3 x 3 and a 1 x 1 that doubles the channels."""
    first, second = conv_norm(channels, channels, 1), conv_norm(channels, channels, 3, stride)
    branch = [*first, nn.ReLU(), *second, nn.ReLU(), *conv_norm(channels, 2 * channels, 1)]
    return Residual(branch, channels, 2 * channels, stride)


def stage(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Two residual blocks with a ReLU between them and none behind."""
    return nn.Sequential(basic(channels, out_channels, stride), nn.ReLU(), basic(out_channels, out_channels))


class PyramidPooling(nn.Module):
    """DDRNet's deep aggregation pyramid pooling: averages over growing windows, each added to the next finer one's."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(norm_conv(channels, BRANCH, 1) for _ in range(2 + len(WINDOWS)))
        self.process = nn.ModuleList(norm_conv(BRANCH, BRANCH, 3) for _ in range(1 + len(WINDOWS)))
        self.compress = norm_conv(BRANCH * len(self.scales), out_channels, 1)
        self.shortcut = norm_conv(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.avg_pool2d(x, window, window // 2, window // 2) for window in WINDOWS]
        pooled.append(x.mean((2, 3), keepdim=True))
        branches = [self.scales[0](x)]
        for scale, process, small in zip(self.scales[1:], self.process, pooled, strict=True):
            branches.append(process(_resize(scale(small), x) + branches[-1]))
        return self.compress(torch.cat(branches, 1)) + self.shortcut(x)


class Encoder(nn.Module):
    """DDRNet-23-slim: an image -> `features` channels at 1/8 of its size.

    From 1/8 on a branch keeps the resolution while the other goes down to 1/64; twice they exchange what they have.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        c = PLANES
        self.stem = nn.Sequential(
            *conv_norm(3, c, 3, 2, bias=True), nn.ReLU(), *conv_norm(c, c, 3, 2, bias=True), nn.ReLU()
        )
        self.layer1, self.layer2 = stage(c, c), stage(c, 2 * c, 2)
        self.low3, self.low4, self.low5 = stage(2 * c, 4 * c, 2), stage(4 * c, 8 * c, 2), bottleneck(8 * c, 2)
        self.high3, self.high4, self.high5 = stage(2 * c, 2 * c), stage(2 * c, 2 * c), bottleneck(2 * c)
        self.up3 = nn.Sequential(*conv_norm(4 * c, 2 * c, 1))
        self.up4 = nn.Sequential(*conv_norm(8 * c, 2 * c, 1))
        self.down3 = nn.Sequential(*conv_norm(2 * c, 4 * c, 3, 2))
        self.down4 = nn.Sequential(*conv_norm(2 * c, 4 * c, 3, 2), nn.ReLU(), *conv_norm(4 * c, 8 * c, 3, 2))
        self.pyramid = PyramidPooling(16 * c, 4 * c)
        self.merge = norm_conv(4 * c, 2 * c, 3)
        self.norm = nn.BatchNorm2d(2 * c)
        self.project = nn.Conv2d(2 * c, features, 1)

    def forward(self, image: Tensor) -> Tensor:
        shared = F.relu(self.layer2(F.relu(self.layer1(self.stem(image)))))
        high, low = self.high3(shared), F.relu(self.low3(shared))
        high, low = self.exchange(high, low, self.up3, self.down3)
        high, low = self.high4(high), F.relu(self.low4(low))
        high, low = self.exchange(high, low, self.up4, self.down4)
        high, low = self.high5(high), self.low5(low)
        x = self.merge(high + _resize(self.pyramid(low), high))
        return self.project(F.relu(self.norm(x)))

    @staticmethod
    def exchange(high: Tensor, low: Tensor, up: nn.Module, down: nn.Module) -> tuple[Tensor, Tensor]:
        """What both branches go on with: each its own map and the other's."""
        return F.relu(high + _resize(up(low), high)), F.relu(low + down(F.relu(high)))


class Guided(nn.Module):
    """Refines features with the image at their own size as a guide; the channels stay.

    inner  channels after the first convolution of each part
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        both = inner // 2 * 2
        self.features = nn.Sequential(*self.part(channels, inner, inner // 2))
        self.guide = nn.Sequential(*self.part(3, inner, inner // 2))
        squeeze, excite = (nn.Conv2d(both, both, 1, bias=False) for _ in range(2))
        self.gate = nn.Sequential(squeeze, nn.ReLU(), excite, nn.Sigmoid())
        self.combine = nn.Sequential(*self.part(both, inner, channels))

    @staticmethod
    def part(channels: int, inner: int, out_channels: int) -> list[nn.Module]:
        first, second = conv_norm(channels, inner, 3, bias=True), conv_norm(inner, out_channels, 1, bias=True)
        return [*first, nn.ReLU(), *second, nn.ReLU()]

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        both = torch.cat([self.features(x), self.guide(image)], 1)
        return x + self.combine(both * self.gate(both.mean((2, 3), keepdim=True)))


class Decoder(nn.Module):
    """Features at 1/8 and the image -> inverse depth at full size, at least 0."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        w3, w2, w1 = widths
        self.guided3, self.reduce3 = Guided(w3, w3), nn.Conv2d(w3, w2, 1)
        self.guided2, self.reduce2 = Guided(w2, w2), nn.Conv2d(w2, w1, 1)
        self.guided1, self.predict = Guided(w1, w1), nn.Conv2d(w1, 1, 1)
        # A fresh network predicts about 1, well inside the closing ReLU's live side.
        nn.init.ones_(self.predict.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.predict.weight.mul_(0.1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.reduce3(self.guided3(_double(x), _shrunk(image, 4)))
        x = self.reduce2(self.guided2(_double(x), _shrunk(image, 2)))
        x = self.guided1(_double(x), image)
        return closing_relu(in_float32(self.predict, x), self.training)


class GuideDepth(DepthNetwork):
    """GuideDepth.

    variant  "full" (5,824,513 parameters, published as 5.82 M) or "small", GuideDepth-S (5,723,273)
    """

    name = "guidedepth"
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    taps = ("encoder.project", "decoder.reduce3", "decoder.reduce2")

    def __init__(self, variant: str = "full") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise MdeError(f"model.variant={variant}: unknown; choose one of {', '.join(VARIANTS)}")
        self.variant = variant
        widths = VARIANTS[variant]
        self.encoder = Encoder(widths[0])
        self.decoder = Decoder(widths)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as they are written into a file's metadata."""
        return {"variant": self.variant}

    def _predict(self, image: Tensor) -> Tensor:
        """MdeError on a single image while BatchNorm trains."""
        if len(image) == 1 and self.encoder.norm.training:
            raise MdeError(
                "batch_size=1: guidedepth averages each image to one pixel, and BatchNorm needs two to train; "
                "use batch_size=2"
            )
        return self.decoder(self.encoder(image), image)

    def scaled(self) -> list[Scaled]:
        """The last layer alone: BatchNorm holds the others."""
        return [Scaled("decoder.predict", "", "output")]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """To the size of `like`: sides at 1/64 are rounded up, so that no constant factor leads back."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _shrunk(image: Tensor, factor: int) -> Tensor:
    """Every `factor`-th pixel, as nearest-neighbour resizing takes them."""
    return image[:, :, ::factor, ::factor]
