"""From a frame as measured to what a network takes: resizing, normalising, augmentation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import kornia.augmentation as K
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mde.data.sample import Frames, Sample
from mde.geometry import resize_homography, transform_intrinsics

# (chance, change): drawn here and not by kornia, which computes a change before it discards it. Hue goes through HSV
# and costs as much as the rest together, hence apart and seldom.
_COLOUR = (
    (0.8, K.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0, p=1.0)),
    (0.2, K.RandomHue((-0.05, 0.05), p=1.0)),
    (0.05, K.RandomGrayscale(p=1.0)),
    (0.05, K.RandomGaussianBlur((5, 5), (0.1, 1.5), p=1.0)),
)
_SMALLEST_AREA = 0.6  # of the frame, in a crop
_ASPECT_CHANGE = 1.25  # at most, either way


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Stretch (..., C, H, W) to `size` (height, width): the one definition of resizing, bilinear and antialiased.

    uint8 becomes float32 in 0-1; floating point keeps its scale and dtype. Pixel centres are at half pixels
    (align_corners=False), so a corner of the image stays a corner.
    """
    if image.dtype == torch.uint8:
        image = image.float() / 255
    height, width = size
    if image.shape[-2:] == (height, width):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(batch, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*image.shape[:-2], height, width)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std per channel; image float (..., 3, H, W) in 0-1."""
    return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]


def crop(sample: Sample, box: tuple[int, int, int, int], size: Sequence[int]) -> Sample:
    """Cut `box` (top, left, height, width, in pixels of the image) out of a frame and stretch it to `size` (height,
    width).

    The image is resized antialiased; depth and mask take the nearest value of their own grid, which needs not be the
    image's, so that no depth is invented between near and far. A teacher's map, whose every value counts, is
    resized as the image is. The intrinsics follow.
    """
    top, left, height, width = box
    image = resize_image(sample.image[:, top : top + height, left : left + width], size)
    y = _nearest(sample.depth.shape[-2], sample.image.shape[-2], top, height, size[0])
    x = _nearest(sample.depth.shape[-1], sample.image.shape[-1], left, width, size[1])
    intrinsics = sample.intrinsics
    if intrinsics is not None:
        move = torch.tensor([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
        intrinsics = transform_intrinsics(intrinsics, resize_homography((height, width), (size[0], size[1])) @ move)
    view = replace(sample, image=_to_uint8(image), intrinsics=intrinsics)
    view.depth, view.mask = sample.depth[:, y[:, None], x], sample.mask[:, y[:, None], x]
    if sample.teacher is not None:
        whole = resize_image(sample.teacher, sample.image.shape[-2:])
        view.teacher = resize_image(whole[:, top : top + height, left : left + width], size)
    return view


def flip(sample: Sample) -> Sample:
    """Mirror a frame left to right: the picture of a mirrored world, seen with a positive focal length."""
    intrinsics = sample.intrinsics
    if intrinsics is not None:
        mirror = torch.tensor([[-1.0, 0, sample.image.shape[-1] - 1], [0, 1, 0], [0, 0, 1]])
        intrinsics = transform_intrinsics(intrinsics, mirror)
    image, depth, mask = sample.image.flip(-1), sample.depth.flip(-1), sample.mask.flip(-1)
    teacher = None if sample.teacher is None else sample.teacher.flip(-1)
    return replace(sample, image=image, depth=depth, mask=mask, intrinsics=intrinsics, teacher=teacher)


def jitter_colour(image: Tensor) -> Tensor:
    """Brightness, contrast, saturation; seldom hue, grey, blur. uint8 (3, H, W); draws from torch's generator."""
    batch = image[None].float() / 255
    for chance, change in _COLOUR:
        if torch.rand(()) < chance:
            batch = change(batch)
    return _to_uint8(batch[0])


def augment(sample: Sample, size: Sequence[int], seed: int) -> Sample:
    """A random view of a frame at `size` (height, width); image, depth, mask, teacher and intrinsics stay consistent.

    A crop of 60 to 100 % of the frame whose aspect differs from the frame's by up to 1.25, so that the network meets
    the stretching of evaluation and some more; mirrored half the time; colours jittered. A pure function of its
    arguments: the global generator of torch, which kornia draws from, is left as it was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        view = crop(sample, _random_box(sample.image.shape[-2], sample.image.shape[-1]), size)
        if torch.rand(()) < 0.5:
            view = flip(view)
        view.image = jitter_colour(view.image)
    return view


class TrainingSet(Dataset[dict[str, Tensor]]):
    """Frames as training takes them, asked for by the keys (k, index) of StreamSampler.

    An item is a dict: image float32 (3, H, W) normalised, depth float32 (1, H, W) metres, mask bool (1, H, W),
    and where there is one, teacher float32 (1, H, W). It depends on (seed, k, index) alone: neither on the worker nor
    on what was read before. augment=False takes the whole frame, stretched.
    """

    def __init__(
        self,
        frames: Frames,
        size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        augment: bool = True,
    ):
        self.frames, self.size, self.mean, self.std = frames, tuple(size), tuple(mean), tuple(std)
        self.seed, self.augment = seed, augment

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        k, index = key
        sample = self.frames[index]
        if self.augment:
            view = augment(
                sample, self.size, int(np.random.SeedSequence((self.seed, k)).generate_state(1, np.uint64)[0])
            )
        else:
            view = crop(sample, (0, 0, *sample.image.shape[-2:]), self.size)
        image = normalise(resize_image(view.image, self.size), self.mean, self.std)
        taught = {} if view.teacher is None else {"teacher": view.teacher}
        return {"image": image, "depth": view.depth, "mask": view.mask} | taught


def _random_box(height: int, width: int) -> tuple[int, int, int, int]:
    area, aspect, y, x = torch.rand(4).tolist()
    scale = math.sqrt(_SMALLEST_AREA + (1 - _SMALLEST_AREA) * area)
    stretch = math.sqrt(_ASPECT_CHANGE) ** (2 * aspect - 1)
    h = max(1, min(height, round(height * scale / stretch)))
    w = max(1, min(width, round(width * scale * stretch)))
    return round(y * (height - h)), round(x * (width - w)), h, w


def _nearest(cells: int, pixels: int, first: int, count: int, size: int) -> Tensor:
    """Cells of a depth grid under the centres of `size` output pixels, which cover pixels first ... first + count."""
    centres = first + (torch.arange(size, dtype=torch.float64) + 0.5) * (count / size)
    return (centres * (cells / pixels)).long().clamp(0, cells - 1)


def _to_uint8(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
