"""A network of seconds instead of minutes, with every operator of the real one."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.export import ImageGraph
from mde.models.midas_small import IMAGENET_MEAN, IMAGENET_STD, Head, ResidualUnit, SamePadConv2d

SIZE = (32, 32)


class SmallNetwork(nn.Module):
    """(1, 3, H, W) -> (1, 1, H, W): strided, depthwise and residual convolutions, an upsampling, the real head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = SamePadConv2d(3, 8, 3, stride=2)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.refine = ResidualUnit(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.refine(self.block(F.relu6(self.stem(x))))
        return self.head(x)


def small_graph() -> ImageGraph:
    network = SmallNetwork().eval().requires_grad_(False)
    network.head.conv3.weight.abs_().mul_(10)
    network.head.conv3.bias.zero_()
    return ImageGraph(network, IMAGENET_MEAN, IMAGENET_STD).eval()


def dead_graph() -> ImageGraph:
    """With what pruning leaves behind: a unit that puts out nothing but zeros, and filters of zeros with a bias."""
    graph = small_graph()
    graph.network.refine.conv1.bias.fill_(-100)
    for layer in (graph.network.stem, graph.network.block[0], graph.network.head.conv1):
        layer.weight[2] = 0
        layer.bias[2] = 5
    return graph


def calibration_frames(count: int = 4, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """uint8 (1, H, W, 3): patches of colour with noise."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        patches = rng.uniform(0, 220, (size[0] // 8, size[1] // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        frames.append((patches + rng.uniform(0, 35, patches.shape)).astype(np.uint8)[None])
    return frames


def difference(output: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute difference as a share of the range of `expected`."""
    return float(np.abs(output - expected).mean() / np.ptp(expected))


def layers(model: nn.Module) -> set[str]:
    """The names of its convolutions."""
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
