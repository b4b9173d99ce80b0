"""Depth metrics: pure functions that give one figure per image, and the accumulator over a dataset.

The zero-shot protocol: resize the prediction to the truth (`resize_prediction`), fit scale and shift against inverse
depth on the valid pixels, clamp at 1 / cap, invert, compare metres with metres (`depth_metrics`). Valid for fit and
figures alike: mask and 0 < depth <= cap, so sky is out.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from mde.errors import MdeError
from mde.losses import IMAGE, align_scale_shift

__all__ = [
    "METRICS",
    "DepthMetrics",
    "align_scale_shift",
    "depth_metrics",
    "predict_depth",
    "raw_metrics",
    "resize_prediction",
    "truth_mask",
    "vertical_ramp",
]

Align = bool | Literal["median", "depth"]
# Names in metrics.json.
ALIGNMENT: dict[Align, str] = {
    True: "per_frame",
    "depth": "per_frame_in_depth",
    "median": "median",
    False: "frozen",
}
NEAREST = 1e-3  # metres: a line fitted in depth may fall to 0 and below, where no logarithm is

METRICS = ("rmse", "mae", "abs_rel", "sq_rel", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")


def depth_metrics(
    inverse_depth: Tensor, depth: Tensor, mask: Tensor, cap: float, align: Align = True
) -> dict[str, Tensor]:
    """Errors of predicted inverse depth against true depth, per image.

    inverse_depth float (N, 1, H, W), depth (N, 1, H, W) in metres, mask bool (N, 1, H, W), cap in metres
    -> {name: (N,)}, of the inputs' common dtype but at least float32 (in which everything is computed):

    rmse, mae              root mean square and mean absolute error, metres
    abs_rel, sq_rel        mean of |p - g| / g, and of (p - g)^2 / g (metres)
    rmse_log, log10, silog root mean square of e = ln p - ln g; mean |log10 p - log10 g|; 100 x standard deviation of e
                           (KITTI's SILog)
    delta1, delta2, delta3 share of pixels with max(p / g, g / p) < 1.25, 1.25^2, 1.25^3

    align: True fits scale and shift per image by least squares in inverse depth; "depth" fits them to 1 / inverse_depth
    in metres, for networks that predict depth, and clamps at 1 mm too; "median" multiplies 1 / inverse_depth by the
    ratio of the two medians (torch's, the lower one), the other protocol of the literature; False takes inverse_depth
    as 1 / metres. An image without a valid pixel is NaN in every metric.
    """
    valid = truth_mask(depth, mask, cap)
    predicted, _ = predict_depth(inverse_depth, depth, valid, cap, align)
    return _depth_errors(predicted, depth, valid)


def raw_metrics(prediction: Tensor, depth: Tensor, mask: Tensor, depth_unit: float) -> dict[str, Tensor]:
    """{"rmse", "mae"}, each (N,), of the prediction *as it is* against depth in raw sensor counts, depth / depth_unit.

    This is wrong: it subtracts a distance in counts (far is large) from an inverse depth of unknown scale (near is
    large), so a network that predicts zero everywhere can win. It is the protocol behind the tables of "Low-Latency
    Monocular Depth Estimation" and kept so that those rows can be redone and shown beside the right ones. No cap.
    NaN for an image without a valid pixel.
    """
    valid = truth_mask(depth, mask)
    error = torch.where(valid, prediction - depth / depth_unit, 0)
    return {"rmse": _mean(error.square(), valid).sqrt(), "mae": _mean(error.abs(), valid)}


def resize_prediction(prediction: Tensor, size: Sequence[int]) -> Tensor:
    """Prediction (N, 1, h, w) at the truth's size (H, W): bilinear, half-pixel convention, not antialiased."""
    if tuple(prediction.shape[-2:]) == tuple(size):
        return prediction
    return F.interpolate(prediction, size=tuple(size), mode="bilinear", align_corners=False)


def vertical_ramp(height: int, width: int) -> Tensor:
    """The baseline that knows nothing but gravity: inverse depth (1, 1, H, W), 0 in the top row to 1 in the bottom."""
    return torch.linspace(0, 1, height).view(1, 1, height, 1).expand(1, 1, height, width).contiguous()


class DepthMetrics(Metric):
    """Means over a dataset of what `depth_metrics` or `raw_metrics` gives per image.

    cap         metres
    protocol    "inverse_depth" (`depth_metrics`) or "raw" (`raw_metrics`: rmse, mae and pooled_rmse only, in counts)
    align       as in `depth_metrics`; plays no part in the raw protocol

    Images without a valid pixel are skipped and counted. Sums are kept in float64 and added up over DDP ranks. `latest`
    holds what the last batch's images have, (N,) each by its name.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    squared_error: Tensor
    counts: Tensor
    latest: dict[str, Tensor]

    def __init__(
        self,
        cap: float,
        protocol: str = "inverse_depth",
        align: Align = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if protocol not in ("inverse_depth", "raw"):
            raise MdeError(f'metrics: protocol={protocol} is unknown; choose "inverse_depth" or "raw"')
        if align not in ALIGNMENT:
            raise MdeError(f'metrics: align={align} is unknown; choose true, "depth", "median" or false')
        self.cap, self.protocol, self.align = cap, protocol, align
        self.add_state("sums", torch.zeros(len(METRICS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squared_error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        # frames, skipped frames, frames with a negative scale, valid pixels, pixels
        self.add_state("counts", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, inverse_depth: Tensor, depth: Tensor, mask: Tensor, depth_unit: float = 0.001) -> None:
        """Add a batch: inverse_depth at the truth's size, depth in metres, mask bool; all (N, 1, H, W).

        depth_unit: metres in one count of the stored depth image, for the raw protocol.
        """
        if self.protocol == "raw":
            valid, scale = truth_mask(depth, mask), depth.new_zeros(len(depth))
            figures = raw_metrics(inverse_depth, depth, mask, depth_unit)
        else:
            valid = truth_mask(depth, mask, self.cap)
            predicted, scale = predict_depth(inverse_depth, depth, valid, self.cap, self.align)
            figures = _depth_errors(predicted, depth, valid)
        self.latest = figures
        pixels = valid.sum(dim=IMAGE)
        used = pixels > 0
        unknown = torch.full_like(figures["rmse"], torch.nan)
        per_image = torch.stack([figures.get(name, unknown) for name in METRICS]).double()
        self.sums += torch.where(used, per_image, 0).sum(dim=1)
        self.squared_error += torch.where(used, figures["rmse"].double().square() * pixels, 0).sum()
        self.counts += torch.stack(
            [used.sum(), (~used).sum(), (scale < 0).sum(), pixels.sum(), torch.tensor(mask.numel(), device=mask.device)]
        )

    def compute(self) -> dict[str, str | int | float | None]:
        """The quality entry of metrics.json. None stands for what has no value (no frame, or not in this protocol)."""
        frames, skipped, negative, valid_pixels, pixels = self.counts.tolist()
        means = {name: _json_number(total, frames) for name, total in zip(METRICS, self.sums.tolist(), strict=True)}
        mean_square = _json_number(self.squared_error.item(), valid_pixels)
        return {
            "protocol": self.protocol,
            "alignment": "none" if self.protocol == "raw" else ALIGNMENT[self.align],
            "frames": frames,
            **means,
            "pooled_rmse": None if mean_square is None else mean_square**0.5,
            "coverage": _json_number(valid_pixels, pixels),
            "negative_scale_frames": negative,
            "skipped_frames": skipped,
        }


def truth_mask(depth: Tensor, mask: Tensor, cap: float = torch.inf) -> Tensor:
    """Pixels that alignment and metrics may use: mask and 0 < depth <= cap, sky (+inf) left out. Any common shape."""
    return mask & (depth > 0) & (depth <= cap) & torch.isfinite(depth)


def predict_depth(
    inverse_depth: Tensor, depth: Tensor, valid: Tensor, cap: float, align: Align = True
) -> tuple[Tensor, Tensor]:
    """Predicted depth (N, 1, H, W) in metres, at most cap, and the scale (N,) that the alignment found (1 if none).

    Fitted to `depth` on the `valid` pixels, as `depth_metrics` describes.
    """
    inverse_depth = inverse_depth.to(torch.promote_types(inverse_depth.dtype, torch.float32))
    scale = torch.ones_like(inverse_depth[:, 0, 0, 0])
    if align in ("median", "depth"):
        relative = 1 / inverse_depth.clamp(min=torch.finfo(inverse_depth.dtype).tiny)
        if align == "depth":
            relative = relative.double()  # whose squares leave float32 where inverse depth is 0
            scale, shift = align_scale_shift(relative, depth, valid)
            predicted = (scale.view(-1, 1, 1, 1) * relative + shift.view(-1, 1, 1, 1)).clamp(NEAREST, cap)
            return predicted.to(inverse_depth.dtype), scale
        scale = _median(depth, valid) / _median(relative, valid)
        return (relative * scale.view(-1, 1, 1, 1)).clamp(max=cap), scale
    if align:
        true_inverse = 1 / torch.where(valid, depth, 1)
        scale, shift = align_scale_shift(inverse_depth, true_inverse, valid)
        inverse_depth = scale.view(-1, 1, 1, 1) * inverse_depth + shift.view(-1, 1, 1, 1)
    return 1 / inverse_depth.clamp(min=1 / cap), scale


def _depth_errors(predicted: Tensor, depth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The figures of `depth_metrics`, both depths in metres."""
    depth, predicted = torch.where(valid, depth, 1), torch.where(valid, predicted, 1)
    error, log_error = predicted - depth, predicted.log() - depth.log()
    log_bias = _mean(log_error, valid).view(-1, 1, 1, 1)
    ratio = torch.maximum(predicted / depth, depth / predicted)
    return {
        "rmse": _mean(error.square(), valid).sqrt(),
        "mae": _mean(error.abs(), valid),
        "abs_rel": _mean(error.abs() / depth, valid),
        "sq_rel": _mean(error.square() / depth, valid),
        "rmse_log": _mean(log_error.square(), valid).sqrt(),
        "log10": _mean(log_error.abs(), valid) / torch.log(torch.tensor(10.0)).item(),
        "silog": 100 * _mean((log_error - log_bias).square(), valid).sqrt(),
        "delta1": _mean((ratio < 1.25).to(ratio), valid),
        "delta2": _mean((ratio < 1.25**2).to(ratio), valid),
        "delta3": _mean((ratio < 1.25**3).to(ratio), valid),
    }


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """(N,): the mean over each image's valid pixels, NaN where there are none."""
    return torch.where(valid, values, 0).sum(dim=IMAGE) / valid.sum(dim=IMAGE)


def _median(values: Tensor, valid: Tensor) -> Tensor:
    """(N,): torch's median (the lower one) of each image's valid pixels, NaN where there are none."""
    return torch.where(valid, values, torch.nan).flatten(1).nanmedian(dim=1).values


def _json_number(total: float, count: int) -> float | None:
    """total / count, or None where that is no number: JSON has no NaN."""
    mean = total / count if count else torch.nan
    return mean if abs(mean) < torch.inf else None
