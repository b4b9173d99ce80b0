"""Where a prediction errs, and how steady it is from frame to frame.

Both classes take one frame after the other, keep sums in float64 (and of frames no more than the last), and answer what
is known so far as plain numbers; None is what is not known.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ErrorBreakdown", "Stability", "near_depth_edge"]

STEP = 1.05  # ratio of neighbouring depths that is an edge
STILL = 0.01  # relative change of the sensor's depth below which nothing moved
BRIGHTNESS = 64  # levels of luma in a bin
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ErrorBreakdown:
    """Errors by distance, at depth edges and by brightness, pooled over the pixels of all frames.

    cap  metres; distance is cut into bins of 1 m up to it
    """

    def __init__(self, cap: float):
        self.cap = cap
        # of every cell: pixels, squared error, absolute error, relative error, pixels within a factor 1.25
        self._sums = torch.zeros(5, math.ceil(cap), 2, 256 // BRIGHTNESS, dtype=torch.float64)

    def update(self, predicted: Tensor, depth: Tensor, valid: Tensor, image: Tensor) -> None:
        """Add a frame: both depths (1, 1, h, w) in metres, the predicted one aligned to the other (as
        `mde.metrics.predict_depth` returns it); valid bool (1, 1, h, w), where 0 < depth <= cap; image uint8 (3, h, w).
        """
        planes = (predicted, depth, near_depth_edge(depth, valid), _luma(image))
        chosen = valid.flatten().nonzero().squeeze(1)  # once: a mask as index would be searched for each plane
        p, g, edge, luma = (plane.flatten()[chosen] for plane in planes)
        p, g = p.double(), g.double()
        cells = self._sums.shape[1:]
        # A bin holds its lower limit; the last one of distance both.
        distance = g.long().clamp(max=cells[0] - 1)
        cell = (distance * cells[1] + edge) * cells[2] + luma.long() // BRIGHTNESS
        error = p - g
        values = [torch.ones_like(g), error.square(), error.abs(), error.abs() / g, torch.maximum(p / g, g / p) < 1.25]
        for total, value in zip(self._sums, values, strict=True):
            total += cell.bincount(value.double(), minlength=total.numel()).view(cells)

    def compute(self) -> dict[str, list[dict[str, Any]]]:
        """{"distance": bins, "edges": bins, "brightness": bins}, a bin being {"from", "to"} in metres or in levels of
        luma, or {"name"} of edges, with

        pixels, rmse, mae (metres), abs_rel, delta1 (share): as in `mde.metrics.depth_metrics`, of the pixels in the bin
        """
        distance, edges, brightness = (self._sums.sum(dim=others) for others in ((2, 3), (1, 3), (1, 2)))
        metres = [{"from": float(i), "to": float(min(i + 1, self.cap))} for i in range(distance.shape[1])]
        levels = [{"from": i * BRIGHTNESS, "to": (i + 1) * BRIGHTNESS} for i in range(brightness.shape[1])]
        return {
            "distance": _bins(metres, distance),
            "edges": _bins([{"name": "elsewhere"}, {"name": "near depth edges"}], edges)[::-1],
            "brightness": _bins(levels, brightness),
        }


class _Frame(NamedTuple):
    inverse_depth: Tensor
    depth: Tensor
    valid: Tensor
    scale: float
    shift: float


class Stability:
    """How steady predictions of consecutive frames are, where each alone is known up to scale and shift only."""

    def __init__(self) -> None:
        self._frames = 0
        self._mean = torch.zeros(2, dtype=torch.float64)  # of scale and shift
        self._squares = torch.zeros(2, dtype=torch.float64)  # sums of squared deviations from the mean
        self._changes = torch.zeros(2, dtype=torch.float64)  # sums of |ln| of the prediction's and the sensor's changes
        self._compared, self._still = 0, 0
        self._last: _Frame | None = None

    def update(self, inverse_depth: Tensor, depth: Tensor, valid: Tensor, scale: float, shift: float) -> None:
        """Add the next frame: inverse_depth as the network predicts it, depth in metres, valid bool, all (1, 1, h, w);
        scale and shift align it to this frame (`mde.losses.align_scale_shift`).

        A frame without a valid pixel has neither: it is left out, and nothing is compared across it.
        """
        if not valid.any():
            self._last = None
            return
        self._frames += 1
        # Welford's update: sums of squares would cancel where the drift is small.
        deviation = torch.tensor([scale, shift], dtype=torch.float64) - self._mean
        self._mean += deviation / self._frames
        self._squares += deviation.square() * (self._frames - 1) / self._frames
        # Copies: a source may use the memory of a frame again.
        frame = _Frame(inverse_depth.clone(), depth.clone(), valid.clone(), scale, shift)
        if self._last is not None:
            self._compare(self._last, frame)
        self._last = frame

    def compute(self) -> dict[str, float | int | None]:
        """scale_drift     standard deviation of the frames' scale over its mean
        shift_drift     standard deviation of the frames' shift, 1/m
        flicker         mean |ln(z_t / z_(t-1))| of the prediction over pixels where the sensor saw no change: both
                        frames in metres with the scale and shift of frame t-1, at most its farthest valid depth
        sensor_flicker  the same of the sensor's own depth there; less than 0.01 by the choice of the pixels
        still_share     those pixels, whose depth changed by less than 1 %, of all that are valid in both frames
        frames          with a valid pixel
        """
        drift = (self._squares / self._frames).sqrt() if self._frames > 1 else torch.full((2,), torch.nan)
        flicker, sensor_flicker = (_number(total, self._still) for total in self._changes)
        return {
            "scale_drift": _number(drift[0], self._mean[0].abs()),
            "shift_drift": _number(drift[1], 1),
            "flicker": flicker,
            "sensor_flicker": sensor_flicker,
            "still_share": _number(self._still, self._compared),
            "frames": self._frames,
        }

    def _compare(self, last: _Frame, frame: _Frame) -> None:
        both = frame.valid & last.valid
        still = both & ((frame.depth - last.depth).abs() < STILL * last.depth)
        limit = 1 / torch.where(last.valid, last.depth, 0).max()
        before, now = ((last.scale * one.inverse_depth + last.shift).clamp(min=limit) for one in (last, frame))
        change, sensor_change = (
            torch.where(still, ratio.log().abs(), 0).sum(dtype=torch.float64)
            for ratio in (now / before, frame.depth / last.depth)
        )
        self._changes += torch.stack([change, sensor_change])
        self._compared += int(both.sum())
        self._still += int(still.sum())


def near_depth_edge(depth: Tensor, valid: Tensor) -> Tensor:
    """Bool (1, 1, h, w): pixels near an edge of depth (1, 1, h, w), known where `valid`.

    On an edge is a pixel of which one of the eight neighbours is nearer or farther by more than 5 %; near it, one not
    more than 1 % of the image's longer side away in rows and in columns, and at least 1 pixel. Holes are no edges; but
    sensors leave out what lies on an edge, so holes up to 4 pixels wide first take on the farthest depth around them,
    and a step across them is seen.
    """
    filled = torch.where(valid, depth, 0)
    for _ in range(2):
        filled = torch.where(filled > 0, filled, _largest(filled, 1))
    known = filled > 0
    nearest = 1 / _largest(torch.where(known, 1 / filled, 0), 1)
    edge = known & ((_largest(filled, 1) > STEP * filled) | (filled > STEP * nearest))
    return _largest(edge, max(1, round(max(depth.shape[-2:]) / 100)))


def _largest(values: Tensor, radius: int) -> Tensor:
    """The largest of the values (1, 1, h, w), none below 0, not more than `radius` rows and columns away."""
    # Shifted copies, one axis after the other: several times as fast on a CPU as max_pool2d.
    for dim, padding in ((3, (radius, radius)), (2, (0, 0, radius, radius))):
        padded = F.pad(values, padding)
        shifted = (padded.narrow(dim, start, values.shape[dim]) for start in range(2 * radius + 1))
        values = reduce(torch.maximum, shifted)
    return values


def _luma(image: Tensor) -> Tensor:
    """uint8 (3, h, w) RGB -> uint8 (h, w)."""
    red, green, blue = (weight * plane for weight, plane in zip(LUMA, image.float(), strict=True))
    return (red + green + blue).round().to(torch.uint8)


def _bins(limits: Sequence[dict[str, Any]], sums: Tensor) -> list[dict[str, Any]]:
    """`sums` (5, bins) as means over the pixels of each bin."""
    bins = []
    for about, (pixels, *totals) in zip(limits, sums.T.tolist(), strict=True):
        square, *means = (_number(total, pixels) for total in totals)
        rmse = None if square is None else math.sqrt(square)
        figures = dict(zip(("mae", "abs_rel", "delta1"), means, strict=True))
        bins.append(about | {"pixels": int(pixels), "rmse": rmse} | figures)
    return bins


def _number(total: Tensor | float, count: Tensor | float) -> float | None:
    """total / count, or None where that is no number: JSON has no NaN."""
    ratio = float(total) / float(count) if count else math.nan
    return ratio if math.isfinite(ratio) else None
