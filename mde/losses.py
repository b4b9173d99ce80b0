"""Losses for relative inverse depth: pure functions on tensors, and the target they are computed against.

Every loss takes prediction and target as float (N, 1, H, W), mask as bool (N, 1, H, W), and returns a scalar of the
inputs' common dtype. Half precision inputs are widened to float32 inside.

What holds for all of them: pixels outside the mask have no influence, not even as NaN or inf; the value is the mean
over all N images, where an image with an empty mask counts 0 (so the mean over DDP ranks with equal batches is the
global mean); value and gradient are finite for an empty, a one-pixel and a constant image.

Formulas: Ranftl et al., "Towards Robust Monocular Depth Estimation" (TPAMI 2022), section 5.
"""

import torch
from torch import Tensor

from mde.errors import MdeError

IMAGE = (1, 2, 3)  # the dimensions of one image in (N, 1, H, W)


def ssi_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Scale-and-shift-invariant loss, least squares form: sum over M of (s d + t - d*)^2 / (2 |M|).

    s and t are each image's own least squares fit of the prediction to the target. A negative s is allowed.
    """
    dtype, prediction, target = _clean(prediction, target, mask)
    return (_masked_mean(_aligned_residual(prediction, target, mask).square(), mask) / 2).mean().to(dtype)


def trimmed_mae_loss(prediction: Tensor, target: Tensor, mask: Tensor, trim: float = 0.2) -> Tensor:
    """Scale-and-shift-invariant loss, trimmed form: sum of the smallest residuals |d^ - d*^| / (2 |M|).

    d^ is (d - median) / mean absolute deviation from the median, likewise d*^. The floor(trim |M|) largest residuals of
    an image are left out of the sum; they still count in |M| and in the deviation.

    Raises MdeError unless 0 <= trim < 1.
    """
    if not 0 <= trim < 1:
        raise MdeError(f"loss: trim={trim} must be at least 0 and less than 1, for example 0.2")
    dtype, prediction, target = _clean(prediction, target, mask)
    residual = (_normalised(prediction, mask) - _normalised(target, mask)).abs()
    ascending = torch.where(mask, residual, torch.inf).flatten(1).sort(dim=1).values
    count = mask.sum(dim=IMAGE)
    kept = count - (count * trim).floor()
    keep = torch.arange(ascending.shape[1], device=mask.device) < kept[:, None]
    total = torch.where(keep, ascending, 0).sum(dim=1)
    return (total / (2 * count.clamp(min=1))).mean().to(dtype)


def gradient_matching_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, scales: int = 4, align: str = "least_squares"
) -> Tensor:
    """Multi-scale gradient matching: sum over scales k of [sum of |dx R| + |dy R|] / [valid pixels at that scale].

    R is the aligned prediction minus the target; scale k keeps every 2^k-th row and column from the first; a difference
    counts where both of its pixels are valid. The gradient flows through the alignment.

    align: "least_squares" (R = s d + t - d*, goes with `ssi_loss`), "median" (R = d^ - d*^, both normalised as in
    `trimmed_mae_loss`) or "none" (R = d - d*, goes with plain regression). Raises MdeError for any other.
    """
    dtype, prediction, target = _clean(prediction, target, mask)
    if align == "least_squares":
        residual = _aligned_residual(prediction, target, mask)
    elif align == "median":
        residual = _normalised(prediction, mask) - _normalised(target, mask)
    elif align == "none":
        residual = prediction - target
    else:
        raise MdeError(f'loss: align={align} is unknown; choose "least_squares", "median" or "none"')
    steps = [2**k for k in range(scales)]
    per_scale = [_gradient_term(residual[..., ::step, ::step], mask[..., ::step, ::step]) for step in steps]
    return torch.stack(per_scale).sum(dim=0).mean().to(dtype)


def l1_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute residual, not aligned: for plain regression of a scaled target."""
    dtype, prediction, target = _clean(prediction, target, mask)
    return _masked_mean((prediction - target).abs(), mask).mean().to(dtype)


def mse_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared residual, not aligned."""
    dtype, prediction, target = _clean(prediction, target, mask)
    return _masked_mean((prediction - target).square(), mask).mean().to(dtype)


def inverse_depth_target(depth: Tensor, mask: Tensor) -> Tensor:
    """Inverse depth divided by the image's largest valid one: 1 at the nearest valid pixel, towards 0 far away.

    depth (N, 1, H, W) in any unit, mask bool (N, 1, H, W). Sky (+inf) becomes 0, and so does every invalid pixel,
    whatever is stored there. Not min-max scaled: 0 has to stay infinity.
    """
    finite = mask & (depth > 0) & torch.isfinite(depth)
    nearest = torch.where(finite, depth, torch.inf).amin(dim=IMAGE, keepdim=True)
    nearest = torch.where(torch.isfinite(nearest), nearest, 1)
    # nearest / depth rather than (1 / depth) / max(1 / depth): a tiny depth cannot overflow.
    return torch.where(finite, nearest / torch.where(finite, depth, 1), 0)


def relative_inverse_depth(inverse_depth: Tensor) -> Tensor:
    """A network's inverse depth without its scale and shift: 0 at the image's 2nd percentile and 1 at its 98th.

    float (N, 1, H, W), not narrower than float32 -> the same shape; the same for a x + b with a > 0. Ends of the range
    may lie outside 0 and 1, at most 100 away, and a constant image is 0.
    """
    ascending = inverse_depth.flatten(1).sort(dim=1).values
    last = ascending.shape[1] - 1
    low, high = (ascending[:, round(share * last)].view(-1, 1, 1, 1) for share in (0.02, 0.98))
    spread = high - low
    varies = spread > _rounding(low + high).view(-1, 1, 1, 1)
    return torch.where(varies, (inverse_depth - low) / torch.where(varies, spread, 1), 0).clamp(-100, 100)


def align_scale_shift(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Per image, the (s, t) that minimise sum over M of (s d + t - d*)^2.

    prediction, target float (N, 1, H, W), mask bool (N, 1, H, W) -> scale (N,), shift (N,), at least float32.
    A constant prediction has scale 0 and shift the target's mean; an empty mask has 0 and 0. Differentiable.
    """
    _, prediction, target = _clean(prediction, target, mask)
    mean_p, mean_t = _masked_mean(prediction, mask), _masked_mean(target, mask)
    # Centred first: the textbook determinant |M| sum(d^2) - (sum d)^2 cancels badly in float32.
    centred = torch.where(mask, prediction - mean_p.view(-1, 1, 1, 1), 0)
    variance = _masked_mean(centred.square(), mask)
    covariance = _masked_mean(centred * target, mask)
    varies = variance > _rounding(mean_p).square()
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1), 0)
    return scale, mean_t - scale * mean_p


def _clean(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[torch.dtype, Tensor, Tensor]:
    """The dtype to return, and both tensors with 0 outside the mask, wide enough to compute with."""
    if not prediction.shape == target.shape == mask.shape or prediction.ndim != 4:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (prediction, target, mask))
        raise ValueError(f"prediction, target and mask must have one shape (N, 1, H, W), not {shapes}")
    dtype = torch.promote_types(prediction.dtype, target.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # where() before any arithmetic: 0 * NaN is NaN, in the value and in the gradient.
    return dtype, torch.where(mask, prediction.to(wide), 0), torch.where(mask, target.to(wide), 0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(N,): the mean over each image's valid pixels, 0 where there are none."""
    return torch.where(mask, values, 0).sum(dim=IMAGE) / mask.sum(dim=IMAGE).clamp(min=1)


def _aligned_residual(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    scale, shift = align_scale_shift(prediction, target, mask)
    return scale.view(-1, 1, 1, 1) * prediction + shift.view(-1, 1, 1, 1) - target


def _normalised(values: Tensor, mask: Tensor) -> Tensor:
    """(x - median) / mean |x - median| over each image's valid pixels; the median is torch's, the lower of two.

    A constant image has deviation 0 and is divided by 1 instead, so that its gradient stays finite.
    """
    median = torch.where(mask, values, torch.nan).flatten(1).nanmedian(dim=1).values
    median = torch.where(mask.flatten(1).any(dim=1), median, 0)
    centred = values - median.view(-1, 1, 1, 1)
    deviation = _masked_mean(centred.abs(), mask)
    deviation = torch.where(deviation > _rounding(median), deviation, 1)
    return centred / deviation.view(-1, 1, 1, 1)


def _rounding(level: Tensor) -> Tensor:
    """Spread around `level` (N,) that is rounding error and not signal; never so small that its square underflows."""
    limits = torch.finfo(level.dtype)
    return (4 * limits.eps * level.detach().abs()).clamp(min=limits.tiny**0.5)


def _gradient_term(residual: Tensor, mask: Tensor) -> Tensor:
    """(N,): sum of absolute differences between neighbours that are both valid, over the number of valid pixels."""
    across = torch.where(mask[..., 1:] & mask[..., :-1], residual.diff(dim=3).abs(), 0).sum(dim=IMAGE)
    down = torch.where(mask[..., 1:, :] & mask[..., :-1, :], residual.diff(dim=2).abs(), 0).sum(dim=IMAGE)
    return (across + down) / mask.sum(dim=IMAGE).clamp(min=1)
