"""Depth as pictures: sheets of image | truth | prediction | error."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mde.data.sample import Sample
from mde.metrics import depth_metrics, predict_depth, resize_prediction, truth_mask

INVERSE_DEPTH = "inferno"  # bright is near
ERROR = "magma"
LONGEST = 1280  # pixels of a side, in pictures for looking at


def picture_sheet(samples: Sequence[Sample], predict: Callable[[Sample], Tensor], cap: float) -> Image.Image:
    """One row a frame. Prediction aligned by scale and shift to the truth, shown on the truth's colour scale.

    The error is |ln(prediction / truth)| in metres, dark where nothing is known; 0.22 (a factor 1.25) is half bright.
    """
    figure = Figure(figsize=(9.6, 2.1 * len(samples)), layout="constrained", dpi=100)
    axes = figure.subplots(len(samples), 4, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        depth, mask = sample.depth[None], sample.mask[None]
        prediction = resize_prediction(predict(sample), depth.shape[-2:])
        delta1 = depth_metrics(prediction, depth, mask, cap)["delta1"].item()
        titles = [f"{sample.dataset} {sample.frame}", "truth", f"prediction, delta1 {delta1:.3f}", "error"]
        for axis, picture, title in zip(row, _row(sample, prediction, cap), titles, strict=True):
            axis.imshow(picture, aspect="auto")
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    return _drawn(figure)


def comparison_sheet(samples: Sequence[Sample], predict: Mapping[str, Callable[[Sample], Tensor]], cap: float) -> bytes:
    """PNG: frames as rows; image, truth and each predictor's prediction as columns, its error and delta1 below.

    Aligned and coloured as in `picture_sheet`.
    """
    columns = 2 + len(predict)
    height, width = samples[0].image.shape[-2:]
    side = max(1.85, 11 / columns)  # inches
    rows = 2 * len(samples)
    figure = Figure(figsize=(side * columns, rows * (side * height / width + 0.2) + 0.4), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, sample in enumerate(samples):
        upper, lower = axes[2 * number : 2 * number + 2]
        depth, mask = sample.depth[None], sample.mask[None]
        for (name, run), above, below in zip(predict.items(), upper[2:], lower[2:], strict=True):
            prediction = resize_prediction(run(sample), depth.shape[-2:])
            image, truth, aligned, error = _row(sample, prediction, cap)
            above.imshow(aligned, aspect="auto")
            below.imshow(error, aspect="auto")
            delta1 = depth_metrics(prediction, depth, mask, cap)["delta1"].item()
            below.set_title(f"error, delta1 {delta1:.3f}", fontsize=8)
            if number == 0:
                above.set_title("\n".join(textwrap.wrap(name, 26)), fontsize=8)
        upper[0].imshow(image, aspect="auto")
        upper[0].set_title(f"{sample.dataset} {sample.frame}", fontsize=8)
        upper[1].imshow(truth, aspect="auto")
        upper[1].set_title("truth", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_predictions(samples: Sequence[Sample], predict: Callable[[Sample], Tensor], cap: float, folder: Path) -> None:
    """Each frame as `<number>_image.png`, `_truth.png` and `_prediction.png`, on one colour scale as in a sheet: for
    setting networks side by side later."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        prediction = resize_prediction(predict(sample), sample.depth.shape[-2:])
        for name, picture in zip(("image", "truth", "prediction"), _row(sample, prediction, cap), strict=False):
            small = Image.fromarray(picture)
            small.thumbnail((224, 224))
            small.save(folder / f"{number}_{name}.png")


def beside(rgb: np.ndarray, inverse_depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Image | inverse depth, coloured from `low` to `high`: uint8 (H, W, 3) and float (H, W) -> uint8 (h, 2 w, 3).

    Each half is shrunk to at most LONGEST pixels a side."""
    size = shrunk((rgb.shape[1], rgb.shape[0]), LONGEST)
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BOX)
    inverse = Image.fromarray(inverse_depth.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.concatenate([np.asarray(image), colour(np.asarray(inverse), low, high)], axis=1)


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Titled pictures, uint8 (H, W, 3), two in a row."""
    columns = min(2, len(pictures))
    aspects = [picture.shape[0] / picture.shape[1] for _, picture in pictures]
    heights = [max(aspects[i : i + columns]) * 11 / columns + 0.3 for i in range(0, len(pictures), columns)]  # inches
    figure = Figure(figsize=(11, sum(heights)), layout="constrained", dpi=100)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes, pictures, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
    return _drawn(figure)


def shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`size` with its longer side at most `longest`, in proportion, at least 1."""
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets of one width, one below the other."""
    return Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))


def colour(values: np.ndarray, low: float, high: float, colormap: str = INVERSE_DEPTH) -> np.ndarray:
    """(H, W) -> uint8 (H, W, 3); NaN becomes grey."""
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    picture = matplotlib.colormaps[colormap](np.nan_to_num(scaled))[..., :3]
    picture[~np.isfinite(values)] = 0.35
    return (picture * 255).round().astype(np.uint8)


def _drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _row(sample: Sample, prediction: Tensor, cap: float) -> list[np.ndarray]:
    """Image, truth, prediction, error as uint8 pictures (H, W, 3)."""
    depth = sample.depth[None]
    mask = truth_mask(depth, sample.mask[None], cap)
    truth = (1 / depth.clamp(min=1e-6)).where(mask, 0)
    aligned = 1 / predict_depth(prediction, depth, mask, cap)[0]
    low, high = (truth[mask].quantile(q).item() for q in (0.02, 0.98)) if mask.any() else (0.0, 1.0)
    error = (aligned / truth.where(mask, 1)).log().abs()
    shown = [truth.where(mask, torch.nan), aligned, error.where(mask, 0)]
    pictures = [colour(values[0, 0].numpy(), low, high) for values in shown[:2]]
    return [sample.image.permute(1, 2, 0).numpy(), *pictures, colour(shown[2][0, 0].numpy(), 0, 0.446, ERROR)]
