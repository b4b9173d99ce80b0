"""One scale and shift that turn a network's inverse depth into metres, from frames of a depth sensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mde.errors import MdeError
from mde.metrics import truth_mask

__all__ = ["CalibrationCheck", "check_calibration", "fit_calibration"]

PIXELS = 5000  # taken of a frame at most: neighbours say the same
FEWEST = 1000  # pixels of all frames
FLAT = 1.2  # farthest over nearest depth (quantiles 0.95 and 0.05) below which scale and shift say the same
STEPS = 30  # of each kind of weights; what is left then changes no digit that is shown
HUBER, TUKEY = 1.345, 4.685  # standard deviations: 95 % of least squares' efficiency when errors are normal
NORMAL = 1.4826  # standard deviation over median absolute deviation of a normal distribution
INLIER = 0.1  # relative error up to which a pixel agrees with the calibration


@dataclass(frozen=True)
class CalibrationCheck:
    """What a calibration is worth on some frames.

    frames, pixels  looked at: of a frame at most PIXELS
    inliers         share of the pixels whose metric depth is within 10 % of the sensor's
    median_error    median |z - depth| / depth over the pixels
    """

    frames: int
    pixels: int
    inliers: float
    median_error: float


def fit_calibration(
    inverse_depths: Sequence[Tensor], depths: Sequence[Tensor], masks: Sequence[Tensor], cap: float
) -> tuple[float, float]:
    """(scale, shift) for which scale x inverse depth + shift is 1 / depth (1/m) on all frames at once.

    inverse_depths as predicted, depths in metres, masks bool, each (1, 1, h, w) at the depth's size; depth beyond cap
    (metres) is left out. Iteratively re-weighted least squares with the median absolute residual as scale: Huber's
    weights, whose one minimum needs no start, and from there Tukey's, which give gross outliers (the tails at edges,
    reflections) no weight at all. Holland and Welsch, "Robust regression using iteratively reweighted least-squares"
    (1977).

    MdeError when fewer than FEWEST pixels are valid, the scene is flat, or the scale found is not positive.
    """
    x, y = _sampled(inverse_depths, depths, masks, cap)
    ordered = y.sort().values  # torch's quantile() refuses more than 2^24 values
    far, near = (ordered[int(share * len(y))].item() for share in (0.05, 0.95))
    if near < FLAT * far:
        raise MdeError(
            f"calibrate: a flat scene, depth from {1 / near:.2f} to {1 / far:.2f} m, does not tell scale from shift; "
            "calibrate on frames that show near and far things"
        )
    weight = torch.ones_like(x)
    for weigh in [_huber] * STEPS + [_tukey] * STEPS:
        weight = weigh(_standardised(x, y, *_line(x, y, weight)))
    scale, shift = _line(x, y, weight)
    if not scale > 0:  # or NaN
        raise MdeError(
            f"calibrate: the scale comes out as {scale:.3g}, not above 0: what is nearer to the network is not to the "
            "sensor; are colour and depth aligned, and is it a network for such scenes?"
        )
    return scale, shift


def check_calibration(
    scale: float,
    shift: float,
    inverse_depths: Sequence[Tensor],
    depths: Sequence[Tensor],
    masks: Sequence[Tensor],
    cap: float,
) -> CalibrationCheck:
    """How far scale and shift hold on the given frames: those they were fitted to, or others.

    Frames as in `fit_calibration`; metres are 1 / max(scale x inverse depth + shift, 1 / cap). MdeError when fewer than
    FEWEST pixels are valid.
    """
    x, y = _sampled(inverse_depths, depths, masks, cap)
    error = (y / (scale * x + shift).clamp(min=1 / cap) - 1).abs()
    return CalibrationCheck(len(depths), len(error), (error <= INLIER).double().mean().item(), error.median().item())


def _sampled(
    inverse_depths: Sequence[Tensor], depths: Sequence[Tensor], masks: Sequence[Tensor], cap: float
) -> tuple[Tensor, Tensor]:
    """Predicted and true inverse depth, float64 (n,), of valid pixels taken evenly of each frame."""
    pairs = []
    for inverse_depth, depth, mask in zip(inverse_depths, depths, masks, strict=True):
        valid = truth_mask(depth, mask, cap)
        predicted, known = inverse_depth[valid].double(), depth[valid].double()
        chosen = torch.linspace(0, len(known) - 1, min(PIXELS, len(known))).long()
        pairs.append(torch.stack([predicted[chosen], 1 / known[chosen]]))
    x, y = torch.cat(pairs, dim=1) if pairs else torch.zeros(2, 0)
    if len(x) < FEWEST:
        raise MdeError(
            f"calibrate: {len(x)} pixels of {len(depths)} frames have a depth up to {cap:g} m, {FEWEST} are needed; "
            "use more frames, or nearer things"
        )
    return x, y


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    """Weighted least squares: (scale, shift) of y = scale x + shift; scale 0 where x does not vary."""
    total = weight.sum()
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    variance = (weight * (x - mean_x).square()).sum()
    constant = variance <= total * (1e-9 * mean_x).square()  # but for rounding
    scale = torch.zeros(()) if constant else (weight * (x - mean_x) * (y - mean_y)).sum() / variance
    return scale.item(), (mean_y - scale * mean_x).item()


def _standardised(x: Tensor, y: Tensor, scale: float, shift: float) -> Tensor:
    """|residuals| in robust standard deviations, which rounding alone never makes up."""
    residual = (scale * x + shift - y).abs()
    return residual / (NORMAL * residual.median()).clamp(min=1e-9 * y.median())


def _huber(residual: Tensor) -> Tensor:
    return HUBER / residual.clamp(min=HUBER)


def _tukey(residual: Tensor) -> Tensor:
    return (1 - (residual / TUKEY).square()).clamp(min=0).square()
