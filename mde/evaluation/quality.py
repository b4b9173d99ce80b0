"""A predictor on a dataset: one row of a result table."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mde.data.datamodule import parts_of
from mde.data.folder import OUTDOORS, FolderFrames
from mde.data.sample import Frames, Sample, Splits
from mde.data.transforms import normalise, resize_image
from mde.errors import MdeError
from mde.metrics import Align, DepthMetrics, resize_prediction, truth_mask, vertical_ramp
from mde.models.health import inner_health
from mde.models.network import DepthNetwork
from mde.progress import track

HEALTH_FRAMES = 8
Predictor = Callable[[Sample], Tensor]  # a frame -> inverse depth (1, 1, h, w) at any size


def network_predictor(model: DepthNetwork, size: tuple[int, int]) -> Predictor:
    """The network at one input size (height, width); images are stretched to it. Puts the model in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()

    @torch.inference_mode()
    def predict(sample: Sample) -> Tensor:
        image = normalise(resize_image(sample.image, size), model.mean, model.std)
        return model(image[None].to(device)).float().cpu()

    return predict


def health_on(model: DepthNetwork, frames: Frames, size: tuple[int, int]) -> dict[str, Any]:
    """`inner_health` of the network at one input size, on a few of `frames`."""
    images = [resize_image(frames[index].image, size) for index in spread(len(frames), HEALTH_FRAMES)]
    normalised = torch.stack([normalise(image, model.mean, model.std) for image in images])
    return inner_health(model.eval(), normalised.to(next(model.parameters()).device))


def ramp_predictor(sample: Sample) -> Tensor:
    """The baseline that ignores the image: nearer towards the bottom row."""
    return vertical_ramp(*sample.depth.shape[-2:])


def evaluate(
    predict: Predictor,
    frames: Frames,
    *,
    protocol: str = "inverse_depth",
    align: Align = True,
    limit: int | None = None,
    progress: str | None = None,
    on_frame: Callable[[Sample, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """The quality entry of `metrics.json` for one predictor on one dataset, at the truth's own size.

    Its `content` is a hash of all that was evaluated on: two entries with the same one are of the same set, whatever
    it is called. limit: evaluate that many frames, spread evenly. progress: a title turns the progress bar on.
    on_frame: takes each frame and its figures, NaN where no pixel is valid. Raises MdeError when not one frame has a
    valid pixel.
    """
    metrics = DepthMetrics(cap=frames.cap, protocol=protocol, align=align, sync_on_compute=False)
    content = hashlib.sha256(repr(float(frames.cap)).encode())
    chosen: Iterable[int] = spread(len(frames), limit)
    for index in track(chosen, progress) if progress else chosen:
        sample = frames[index]
        add_content(content, sample)
        depth, mask = sample.depth[None], sample.mask[None]
        prediction = predict(sample)
        if align == "depth":  # what is between two pixels of such a network's output is their mean in depth
            resized = 1 / resize_prediction(1 / prediction, depth.shape[-2:])
        else:
            resized = resize_prediction(prediction, depth.shape[-2:])
        metrics.update(resized, depth, mask, sample.depth_unit)
        if on_frame is not None:
            on_frame(sample, {name: values.item() for name, values in metrics.latest.items()})
    quality = metrics.compute()
    if not quality["frames"]:
        raise MdeError(without_truth(frames, math.inf))
    return quality | {"content": content.hexdigest()}


def add_content(content: Any, sample: Sample) -> None:
    """Adds what a figure depends on, the pixels of image, depth and mask, to a hash of hashlib's."""
    content.update(f"{sample.depth_unit!r} {tuple(sample.image.shape)} {tuple(sample.depth.shape)}".encode())
    for tensor in (sample.image, sample.depth, sample.mask):
        content.update(tensor.contiguous().numpy())


def evaluation_sets(splits: Splits, folders: Sequence[str], limit: int | None = None) -> list[Frames]:
    """The run's own test frames (validation where it has none), then the folders named in evaluate=.

    Of a folder with an official split the test part, else all of it. Opened before training, so that a wrong path is
    found at once, and so is a set that has nothing to evaluate in `limit` of its frames: MdeError for both, and for two
    sets of one name, which a table could not tell apart.
    """
    if limit is not None and limit < 1:
        raise MdeError(f"evaluation.frames={limit}: must be at least 1")
    sets = list(parts_of(splits.test if splits.test is not None else splits.validation))
    for folder in folders:
        frames = FolderFrames(folder)
        if frames.has_split:
            frames = FolderFrames(folder, split="test")
        if frames.name in [known.name for known in sets]:
            raise MdeError(
                f"evaluate={folder}: another set is called {frames.name!r} already; leave one out, or give this one "
                'another "name" in its meta.json'
            )
        sets.append(frames)
    check_truth(sets, limit)
    return sets


def check_truth(sets: Iterable[Frames], limit: int | None = None) -> None:
    """MdeError for a set of which no frame, of the `limit` that are evaluated, has a depth within its cap. Reads on
    until one has: mostly the first.
    """
    for frames in sets:
        nearest = math.inf
        for index in spread(len(frames), limit):
            sample = frames[index]
            if truth_mask(sample.depth, sample.mask, frames.cap).any():
                break
            known = sample.depth[truth_mask(sample.depth, sample.mask)]
            nearest = min([nearest, *known.min().reshape(-1).tolist()]) if known.numel() else nearest
        else:
            raise MdeError(without_truth(frames, nearest))


def without_truth(frames: Frames, nearest: float) -> str:
    """The error of a set without a depth up to its cap; `nearest`: metres, infinite where no depth is known."""
    reason = f"{frames.name}: no frame has a depth up to {frames.cap:g} m"
    if not frames.cap < nearest <= OUTDOORS:
        return f"{reason}; is the depth unit right?"
    return (
        f'{reason}, the nearest is {nearest:.3g} m; write "environment": "outdoor" into its meta.json, or give '
        f"data.cap={OUTDOORS:g} (metres)"
    )


def spread(length: int, limit: int | None) -> list[int]:
    """At most `limit` indices, evenly over range(length)."""
    count = length if limit is None else min(limit, length)
    return [index * length // count for index in range(count)]
