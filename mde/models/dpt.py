"""MiDaS v3, DPT-Hybrid and DPT-Large: a vision transformer and a convolutional decoder (Ranftl et al., ICCV 2021).

A transformer's tokens stay 1/16 of the image's size at every depth. Four of its blocks are tapped (two in the hybrid,
whose ResNet gives the finer two maps), reassembled into maps of 1/4, 1/8, 1/16 and 1/32, and fused as in MiDaS small.

Not built, because no input reaches them: the transformer's classification head, and the residual unit that the deepest
fusion block has for a skip (in all 2,205,160 parameters of the large network, 1,949,160 of the hybrid). The
transformer's last norm is computed and read by nobody, here as there: its parameters count as executed.
"""

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.midas_small import Fusion, Head, MidasSmall, SamePadConv2d, fusion_scaled, pad_same
from mde.models.network import DepthNetwork, Scaled

PATCH = 16  # pixels of a token's side
WIDTH = 256  # decoder channels at every size


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose kernel is standardised per output channel (Qiao et al., 2019), with TensorFlow's SAME padding
    for even input sizes as a constant: timm's StdConv2dSame computes it from the input's size at run time, and the
    kernel by a BatchNorm in training mode, neither of which engines take. Same parameters, same result.
    """

    eps: float

    @classmethod
    def of(cls, conv: Any) -> "StandardisedConv2d":
        """A copy of timm's `conv` (square kernel, no bias, no dilation) that shares its parameters."""
        size, stride = conv.kernel_size[0], conv.stride[0]
        copy = cls(conv.in_channels, conv.out_channels, size, stride, bias=False, device="meta")
        copy.weight, copy.eps = conv.weight, conv.eps
        return copy

    def standardised(self) -> Tensor:
        """The kernel that the image is convolved with: mean 0 and variance 1 over each output channel's weights."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) / torch.sqrt(variance + self.eps)

    def folded(self) -> nn.Conv2d:
        """An ordinary convolution that computes the same from here on, if the weights stay as they are."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = max(0, kernel - stride)
        if padding % 2:
            conv: nn.Conv2d = SamePadConv2d(self.in_channels, self.out_channels, kernel, stride, bias=False)
        else:
            conv = nn.Conv2d(self.in_channels, self.out_channels, kernel, stride, padding // 2, bias=False)
        conv.weight = nn.Parameter(self.standardised().detach(), requires_grad=self.weight.requires_grad)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(pad_same(x, self.kernel_size[0], self.stride[0]), self.standardised(), None)


class PatchEmbedding(nn.Module):
    """Image -> one feature vector a patch, as a map (N, channels, H / 16, W / 16)."""

    def __init__(self, timm_embedding: Any) -> None:
        super().__init__()
        self.proj = timm_embedding.proj

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        return [], self.proj(image)


class HybridEmbedding(PatchEmbedding):
    """The same by a ResNet-50 of three stages, of which the first two maps (1/4 and 1/8) are handed out as well."""

    def __init__(self, timm_embedding: Any) -> None:
        super().__init__(timm_embedding)
        self.backbone = timm_embedding.backbone
        for name, module in list(self.backbone.named_modules()):
            if type(module).__name__ == "StdConv2dSame":
                self.backbone.set_submodule(name, StandardisedConv2d.of(module))
        # SAME padding of an even size: one column and one row at the end, which a last window may lack.
        self.backbone.stem.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = self.backbone.stem(image), []
        for stage in self.backbone.stages:
            x = stage(x)
            maps.append(x)
        return maps[:2], self.proj(x)


class Encoder(nn.Module):
    """A vision transformer of timm's, random weights: image -> the embedding's maps, then the tapped blocks' tokens
    (N, 1 + H / 16 * W / 16, width), of which the first is the readout token.
    """

    def __init__(self, architecture: str, blocks: int, taps: Sequence[int]) -> None:
        super().__init__()
        vit: Any = timm.create_model(architecture, pretrained=False, depth=blocks, num_classes=0)
        hybrid = hasattr(vit.patch_embed, "backbone")
        self.patch_embed = HybridEmbedding(vit.patch_embed) if hybrid else PatchEmbedding(vit.patch_embed)
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed
        self.blocks, self.norm = vit.blocks, vit.norm
        # Nothing is computed from it, so it has no gradient: DistributedDataParallel would wait for one.
        self.norm.requires_grad_(False)
        self.taps = tuple(taps)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, patches = self.patch_embed(image)
        tokens = patches.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        x = x + self._positions(patches)
        for number, block in enumerate(self.blocks):
            x = block(x)
            features += [x] * self.taps.count(number)
        self.norm(x)
        return features

    def _positions(self, patches: Tensor) -> Tensor:
        """The position embedding, learned for 24 x 24 patches, resized to as many as there are."""
        readout, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = math.isqrt(grid.shape[1])
        grid = grid.transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size=patches.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat((readout, grid.flatten(2).transpose(1, 2)), dim=1)


class Reassemble(nn.Module):
    """Tokens at 1/16 of the image's size -> a map of `channels` at 1/16 x `scale`, each patch having read the readout
    token ("project" in the paper).
    """

    def __init__(self, width: int, channels: int, scale: float) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * width, width)
        self.project = nn.Conv2d(width, channels, 1)
        self.resample: nn.Module = nn.Identity()
        if scale > 1:
            self.resample = nn.ConvTranspose2d(channels, channels, int(scale), stride=int(scale))
        elif scale < 1:
            self.resample = nn.Conv2d(channels, channels, 3, stride=round(1 / scale), padding=1)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        readout, patches = tokens[:, :1], tokens[:, 1:]
        x = F.gelu(self.readout(torch.cat((patches, readout.expand_as(patches)), dim=-1)))
        x = x.transpose(1, 2)
        return self.resample(self.project(x.reshape(*x.shape[:2], *grid)))


class Decoder(nn.Module):
    """Encoder features -> inverse depth at full size.

    channels  of the four maps that are fused; the first ones come as maps if the encoder has them
    """

    def __init__(self, width: int, channels: Sequence[int], maps: int, reference: bool) -> None:
        super().__init__()
        self.maps = maps
        scales = (4, 2, 1, 0.5)
        for level in range(maps + 1, 5):
            self.add_module(f"reassemble{level}", Reassemble(width, channels[level - 1], scales[level - 1]))
        self.reduce1, self.reduce2, self.reduce3, self.reduce4 = (
            nn.Conv2d(c, WIDTH, 3, padding=1, bias=False) for c in channels
        )
        self.fusion4 = Fusion(WIDTH, WIDTH, has_skip=False, reference=reference)
        self.fusion3 = Fusion(WIDTH, WIDTH, has_skip=True, reference=reference)
        self.fusion2 = Fusion(WIDTH, WIDTH, has_skip=True, reference=reference)
        self.fusion1 = Fusion(WIDTH, WIDTH, has_skip=True, reference=reference)
        self.head = Head(WIDTH, align_corners=True)

    def forward(self, features: list[Tensor], grid: Sequence[int]) -> Tensor:
        f1, f2, f3, f4 = (
            feature if level <= self.maps else self.get_submodule(f"reassemble{level}")(feature, grid)
            for level, feature in enumerate(features, start=1)
        )
        x = self.fusion4(self.reduce4(f4))
        x = self.fusion3(x, self.reduce3(f3))
        x = self.fusion2(x, self.reduce2(f2))
        x = self.fusion1(x, self.reduce1(f1))
        return self.head(x)


class Dpt(DepthNetwork):
    """What both networks are. `reference=True` keeps the published order of operations, see `Fusion`.

    blocks  of the transformer. The published taps lie at quarters of its depth, and so they do for any other number.
    """

    mean = std = (0.5, 0.5, 0.5)
    taps = MidasSmall.taps
    published_size = (384, 384)
    architecture: str  # timm's name of the encoder
    published_blocks: int
    channels: tuple[int, int, int, int]
    maps: int  # how many of the four come from the embedding

    def __init__(self, blocks: int | None = None, reference: bool = False) -> None:
        super().__init__()
        self.blocks = self.published_blocks if blocks is None else blocks
        self.reference = reference
        if self.blocks < 1:
            raise MdeError(f"model.blocks={blocks}: must be at least 1; leave it out for {self.published_blocks}")
        taps = [math.ceil(self.blocks * quarter / 4) - 1 for quarter in range(self.maps + 1, 5)]
        self.encoder = Encoder(self.architecture, self.blocks, taps)
        width = self.encoder.pos_embed.shape[2]
        self.decoder = Decoder(width, self.channels, self.maps, reference)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as they are written into a file's metadata."""
        return {"blocks": self.blocks, "reference": self.reference}

    def _predict(self, image: Tensor) -> Tensor:
        grid = [side // PATCH for side in image.shape[2:]]
        return self.decoder(self.encoder(image), grid)

    def scaled(self) -> list[Scaled]:
        return fusion_scaled(self)


class DptHybrid(Dpt):
    """MiDaS v3 DPT-Hybrid: ResNet-50 and 12 transformer blocks, 121,197,825 parameters."""

    name = "dpt_hybrid"
    never_executed = 769_000 + 1_180_160  # classification head, residual unit
    architecture = "vit_base_r50_s16_384"
    published_blocks = 12
    channels = (256, 512, 768, 768)
    maps = 2


class DptLarge(Dpt):
    """MiDaS v3 DPT-Large: 24 transformer blocks, 341,850,305 parameters."""

    name = "dpt_large"
    never_executed = 1_025_000 + 1_180_160
    architecture = "vit_large_patch16_384"
    published_blocks = 24
    channels = (256, 512, 1024, 1024)
    maps = 0
