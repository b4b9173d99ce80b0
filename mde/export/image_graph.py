"""The graph that an engine runs: from the camera's image to inverse depth."""

import torch
from torch import Tensor, nn

from mde.errors import MdeError

LAYOUTS = {"nhwc": (0, 3, 1, 2), "nchw": (0, 1, 2, 3)}  # and how they become (N, C, H, W)
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class ImageGraph(nn.Module):
    """`network` with its normalisation in front: RGB in 0..255 -> float32 (1, 1, H, W), inverse depth.

    layout  of the image: "nhwc" (1, H, W, 3), as cameras and files have it, or "nchw" (1, 3, H, W)
    dtype   of the image: "uint8", or "float32" for TensorRT before 8.5, which takes no bytes
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        layout: str = "nhwc",
        dtype: str = "uint8",
    ):
        super().__init__()
        for option, value, known in (("layout", layout, LAYOUTS), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise MdeError(f"target.{option}={value}: unknown; choose from {', '.join(known)}")
        self.network, self.layout, self.dtype = network, layout, dtype
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # The cast comes first: TensorRT refuses any other first node for bytes.
        planes = image.to(self.mean.dtype).permute(LAYOUTS[self.layout])
        return self.network((planes - self.mean) / self.std)

    def example(self, size: tuple[int, int]) -> Tensor:
        """A black image of `size` (height, width), as `forward` takes it."""
        shape = (1, *size, 3) if self.layout == "nhwc" else (1, 3, *size)
        return torch.zeros(shape, dtype=DTYPES[self.dtype])
