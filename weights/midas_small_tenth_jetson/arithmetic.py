"""Resizing, alignment and metrics in NumPy: the package's own definitions where there is no PyTorch.

Python 3.6 syntax: the Jetson bundle ships this file. Each function is tested equal to its twin, which it names.
"""

from typing import Any, Dict, Tuple

import numpy as np

METRICS = ("rmse", "mae", "abs_rel", "sq_rel", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")

Size = Tuple[int, int]  # height, width


def resize_antialiased(image: Any, size: Size) -> Any:
    """Image (H, W, 3) uint8 or float, stretched to float32 `size` + (3,), values on the scale they had.

    `mde.data.transforms.resize_image`: a triangle as wide as the output's pixel, half-pixel centres.
    """
    return _resize(image, size, antialias=True)


def resize_bilinear(values: Any, size: Size) -> Any:
    """Map (h, w) float at another size (height, width), float32; `mde.metrics.resize_prediction`: not antialiased."""
    return _resize(values, size, antialias=False)


def _resize(values: Any, size: Size, antialias: bool) -> Any:
    """Rows, then columns. Few input pixels reach an output pixel: summing them is far less than a matrix product."""
    for axis in (0, 1):
        if values.shape[axis] == size[axis]:
            continue
        index, weight = _taps(values.shape[axis], size[axis], antialias)
        shape = [1] * values.ndim
        shape[axis] = size[axis]
        values = sum(
            np.take(values, index[:, tap], axis=axis) * weight[:, tap].reshape(shape) for tap in range(index.shape[1])
        )
    return np.asarray(values, np.float32)


def _taps(length: int, size: int, antialias: bool) -> Tuple[Any, Any]:
    """Which of `length` input pixels make each of `size` output pixels, and how much: index and float32 weight, both
    (size, taps). Weights fall off linearly from the output's centre and add up to 1; there is nothing past the border.
    """
    scale = length / size
    reach = max(scale, 1.0) if antialias else 1.0
    centre = (np.arange(size)[:, None] + 0.5) * scale
    index = np.floor(centre - reach + 0.5) + np.arange(int(np.ceil(2 * reach)))
    weight = np.maximum(1 - np.abs(index + 0.5 - centre) / reach, 0) * (index >= 0) * (index < length)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return index.clip(0, length - 1).astype(np.int64), weight.astype(np.float32)


def align_scale_shift(prediction: Any, target: Any, mask: Any) -> Tuple[float, float]:
    """(s, t) that minimise the sum over `mask` of (s d + t - d*)^2; arrays of one shape, `prediction` float.

    `mde.losses.align_scale_shift`: a constant prediction has scale 0, an empty mask 0 and 0.
    """
    if not mask.any():
        return 0.0, 0.0
    d, truth = prediction[mask].astype(np.float64), target[mask].astype(np.float64)
    centred = d - d.mean()
    variance = np.mean(centred**2)
    limits = np.finfo(prediction.dtype)
    rounding = max(4 * float(limits.eps) * abs(d.mean()), float(limits.tiny) ** 0.5)
    if variance <= rounding**2:
        return 0.0, float(truth.mean())
    scale = np.mean(centred * truth) / variance
    return float(scale), float(truth.mean() - scale * d.mean())


def truth_mask(depth: Any, mask: Any, cap: float) -> Any:
    """Pixels that alignment and metrics may use: mask and 0 < depth <= cap. `mde.metrics.truth_mask`."""
    with np.errstate(invalid="ignore"):  # a sensor may say NaN
        return mask & (depth > 0) & (depth <= cap)


def metric_depth(inverse_depth: Any, scale: float, shift: float, cap: float) -> Any:
    """Depth in metres, at most `cap`: 1 / max(scale * d + shift, 1 / cap). Any shape."""
    return 1 / np.maximum(scale * inverse_depth + shift, 1 / cap)


def depth_metrics(inverse_depth: Any, depth: Any, mask: Any, cap: float, align: bool = True) -> Dict[str, float]:
    """Errors of one frame: inverse_depth float (H, W), depth (H, W) in metres, mask bool (H, W), cap in metres.

    `mde.metrics.depth_metrics`, where the formulas are, in float64. align: fit scale and shift to the truth first;
    otherwise inverse_depth is 1 / metres. Beside its figures: "scale", what the fit found (1 without), and "pixels".
    Without a valid pixel every figure is NaN.
    """
    valid = truth_mask(depth, mask, cap)
    g = depth[valid].astype(np.float64)
    if not g.size:
        return dict({name: float("nan") for name in METRICS}, scale=0.0, pixels=0)
    scale, shift = align_scale_shift(inverse_depth[valid], 1 / g, np.ones(g.shape, bool)) if align else (1.0, 0.0)
    p = metric_depth(inverse_depth[valid].astype(np.float64), scale, shift, cap)
    error, log_error, ratio = p - g, np.log(p) - np.log(g), np.maximum(p / g, g / p)
    figures = (
        np.sqrt(np.mean(error**2)),
        np.mean(np.abs(error)),
        np.mean(np.abs(error) / g),
        np.mean(error**2 / g),
        np.sqrt(np.mean(log_error**2)),
        np.mean(np.abs(log_error)) / np.log(10),
        100 * np.std(log_error),
        np.mean(ratio < 1.25),
        np.mean(ratio < 1.25**2),
        np.mean(ratio < 1.25**3),
    )
    return dict(zip(METRICS, map(float, figures)), scale=scale, pixels=int(g.size))
