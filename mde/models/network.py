"""What every network here is, beside an nn.Module."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.errors import MdeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Scaled(NamedTuple):
    """A layer whose output may be multiplied by a positive factor, see mde.models.scale.

    name    of a convolution, or of the BatchNorm that ends a network
    reads   the group of maps that its input belongs to, "" for one whose scale is given
    writes  the group of its output: all that is added to each other has one factor
    """

    name: str
    reads: str
    writes: str


class DepthNetwork(nn.Module):
    """Predicts inverse depth from an image; `_predict` is what a network does once the image's shape is checked.

    name     what `build_model` and a file's metadata call it
    mean     per channel (RGB in [0, 1]), with `std` the normalisation that it expects
    taps     modules that hand on what a decoder step made, coarsest first: where a pruned network and its dense teacher
             are compared
    options  its constructor's arguments: class and options build the dense network again

    taken_out       the residual blocks that it has no more
    published_size  height and width of the images that the official weights were trained on
    never_executed  parameters of the published network that no input reaches; they are not built
    """

    name: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    taps: ClassVar[tuple[str, ...]]
    published_size: ClassVar[tuple[int, int]] = (256, 256)
    never_executed: ClassVar[int] = 0
    taken_out: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Float32 (N, 3, H, W), RGB normalised by `mean` and `std`, H and W multiples of 32 -> (N, 1, H, W) inverse
        depth.

        Inverse depth is relative: at least 0, larger is nearer, scale and shift unknown per image. Raises MdeError on
        another shape (not while tracing, where sizes are symbols).
        """
        check_image(self.name, image)
        return self._predict(image)

    def _predict(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def scaled(self) -> list[Scaled]:
        """The layers through which the scale of its maps and of its prediction can be chosen, in the order in which
        they compute.
        """
        raise NotImplementedError


def check_image(network: str, image: Tensor) -> None:
    """MdeError unless `image` is (N, 3, H, W), H and W multiples of 32. Not while tracing, where sizes are symbols."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % 32 or image.shape[3] % 32 or not image.numel():
        raise MdeError(
            f"{network} takes images of shape (N, 3, H, W), H and W multiples of 32, not {tuple(image.shape)}: "
            "resize the image first"
        )


def in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer(x)`, in float32 also under autocast, for what predicts: bfloat16 has steps of 1/128 near 1, which gradient
    matching would take for texture.
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


class _LiftedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * ((x > 0) | (gradient < 0))


def closing_relu(x: Tensor, training: bool) -> Tensor:
    """max(x, 0). In training, a zero passes the gradient that would lift it: under a plain ReLU an output that is zero
    everywhere has no gradient and stays so, which a network with a fresh decoder comes to within 20 steps now and then.
    """
    return _LiftedReLU.apply(x) if training else F.relu(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode after: what only looks must not move BatchNorm's statistics."""
    modes = [module.training for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """The option `size` as (height, width). MdeError unless both are multiples of 32, as every network here needs."""
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
        raise MdeError(f"size={list(size)}: height and width as multiples of 32, for example size=[256,256]")
    return size[0], size[1]
