"""Depth as pictures: sheets of image | truth | prediction | error."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mde.atomic_file import atomic_file
from mde.data.sample import Frames, Sample
from mde.evaluation.quality import spread
from mde.metrics import depth_metrics, predict_depth, resize_prediction, truth_mask
from mde.names import file_name
from mde.report.plots import blank, drawable

INVERSE_DEPTH = "inferno"  # bright is near
ERROR = "magma"
LETTERS = 40  # of a frame's name above it: the last ones, which tell frames apart
LONGEST = 1280  # pixels of a side, in pictures for looking at


def picture_sheet(samples: Sequence[Sample], predict: Callable[[Sample], Tensor], cap: float) -> Image.Image:
    """One row a frame. Prediction aligned by scale and shift to the truth, shown on the truth's colour scale.

    The error is |ln(prediction / truth)| in metres, dark where nothing is known; 0.22 (a factor 1.25) is half bright.
    """
    figure = blank(9.6, 2.1 * len(samples))
    axes = figure.subplots(len(samples), 4, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        frame = _Frame(sample, cap)
        prediction, error, delta1 = frame.predicted(predict)
        _show(row[0], frame.image, frame.title)
        _show(row[1], frame.truth, "truth")
        _show(row[2], prediction, f"prediction, delta1 {delta1:.3f}")
        _show(row[3], error, "error")
    return _drawn(figure)


def comparison_sheet(
    samples: Sequence[Sample], predict: Mapping[str, Callable[[Sample], Tensor]], cap: float
) -> Image.Image:
    """Frames as rows; image, truth and each predictor's prediction as columns, its error and delta1 below.

    Aligned and coloured as in `picture_sheet`.
    """
    columns = 2 + len(predict)
    height, width = samples[0].image.shape[-2:]
    side = max(1.85, 11 / columns)  # inches
    rows = 2 * len(samples)
    figure = blank(side * columns, rows * (side * height / width + 0.2) + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes[1::2, :2].flat:  # below image and truth
        axis.set_axis_off()
    names = ["\n".join(textwrap.wrap(name, 26)) for name in predict]
    for upper, lower, sample in zip(axes[::2], axes[1::2], samples, strict=True):
        frame = _Frame(sample, cap)
        _show(upper[0], frame.image, frame.title)
        _show(upper[1], frame.truth, "truth")
        for name, run, above, below in zip(names, predict.values(), upper[2:], lower[2:], strict=True):
            prediction, error, delta1 = frame.predicted(run)
            _show(above, prediction, name if sample is samples[0] else "")
            _show(below, error, f"error, delta1 {delta1:.3f}")
    return _drawn(figure)


def sheet_path(run_dir: Path, name: str) -> Path:
    """Where the sheet of the set called `name` is, whatever the name."""
    return run_dir / "pictures" / f"{file_name(name)}.png"


def save_sheets(sets: Sequence[Frames], predict: Callable[[Sample], Tensor], run_dir: Path) -> None:
    """pictures/<set>.png, a sheet of each set, and predictions/, a few frames of the first by themselves."""
    for frames in sets:
        sheet = picture_sheet([frames[index] for index in spread(len(frames), 6)], predict, frames.cap)
        save_picture(sheet, sheet_path(run_dir, frames.name))
    first = sets[0]
    save_predictions([first[index] for index in spread(len(first), 3)], predict, first.cap, run_dir / "predictions")


def save_predictions(samples: Sequence[Sample], predict: Callable[[Sample], Tensor], cap: float, folder: Path) -> None:
    """Each frame as `<number>_image.png`, `_truth.png` and `_prediction.png`, on one colour scale as in a sheet: for
    setting networks side by side later."""
    for number, sample in enumerate(samples):
        frame = _Frame(sample, cap)
        pictures = {"image": frame.image, "truth": frame.truth, "prediction": frame.predicted(predict)[0]}
        for name, picture in pictures.items():
            small = Image.fromarray(picture)
            small.thumbnail((224, 224))
            save_picture(small, folder / f"{number}_{name}.png")


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Writes a PNG, whole or not at all; missing folders are made. options: of Pillow's encoder. MdeError when the
    system refuses."""
    with atomic_file(path) as file:
        picture.save(file, "PNG", **options)


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
    figure = blank(11, sum(heights))
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


class _Frame:
    """A frame's image and truth as pictures, uint8 (H, W, 3), and predictions on the truth's colour scale."""

    def __init__(self, sample: Sample, cap: float):
        self._sample, self._cap = sample, cap
        depth = sample.depth[None]
        self._known = truth_mask(depth, sample.mask[None], cap)
        self._inverse = (1 / depth.clamp(min=1e-6)).where(self._known, torch.nan)
        known = self._inverse[self._known]
        self._range = (known.quantile(0.02).item(), known.quantile(0.98).item()) if len(known) else (0.0, 1.0)
        title = f"{sample.dataset} {sample.frame}"
        self.title = title if len(title) <= LETTERS else f"\u2026{title[1 - LETTERS :]}"
        self.image = sample.image.permute(1, 2, 0).numpy()
        self.truth = colour(self._inverse[0, 0].numpy(), *self._range)

    def predicted(self, predict: Callable[[Sample], Tensor]) -> tuple[np.ndarray, np.ndarray, float]:
        """Prediction and error as pictures, and delta1."""
        depth, mask = self._sample.depth[None], self._sample.mask[None]
        prediction = resize_prediction(predict(self._sample), depth.shape[-2:])
        delta1 = depth_metrics(prediction, depth, mask, self._cap)["delta1"].item()
        aligned = 1 / predict_depth(prediction, depth, self._known, self._cap)[0]
        error = (aligned / self._inverse).log().abs().where(self._known, 0)
        error_picture = colour(error[0, 0].numpy(), 0, 0.446, ERROR)
        return colour(aligned[0, 0].numpy(), *self._range), error_picture, delta1


def _show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, aspect="auto")
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def _drawn(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(drawable(figure))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
