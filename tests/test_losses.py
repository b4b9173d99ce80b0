"""Losses against plain NumPy references, and the properties that make them worth training with."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.errors import MdeError
from mde.losses import (
    align_scale_shift,
    gradient_matching_loss,
    inverse_depth_target,
    l1_loss,
    mse_loss,
    ssi_loss,
    trimmed_mae_loss,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

INVARIANT: dict[str, Loss] = {
    "ssi": ssi_loss,
    "trimmed": trimmed_mae_loss,
    "gradient": gradient_matching_loss,
    "gradient_median": partial(gradient_matching_loss, align="median"),
}
PLAIN: dict[str, Loss] = {
    "l1": l1_loss,
    "mse": mse_loss,
    "gradient_none": partial(gradient_matching_loss, align="none"),
}
LOSSES = INVARIANT | PLAIN

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
invariant_loss = pytest.mark.parametrize("loss", INVARIANT.values(), ids=INVARIANT.keys())


# References: one image at a time, plain loops, float64.


def lstsq_fit(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    columns = np.stack([prediction[mask], np.ones(mask.sum())], axis=1)
    return tuple(np.linalg.lstsq(columns, target[mask], rcond=None)[0])


def normalise_by_median(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    ordered = sorted(values[mask])
    median = ordered[(len(ordered) - 1) // 2]
    return (values - median) / np.mean([abs(value - median) for value in ordered])


def reference_ssi(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    scale, shift = lstsq_fit(prediction, target, mask)
    total = sum((scale * prediction[i] + shift - target[i]) ** 2 for i in np.ndindex(*mask.shape) if mask[i])
    return total / (2 * mask.sum())


def reference_trimmed(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, trim: float = 0.2) -> float:
    difference = normalise_by_median(prediction, mask) - normalise_by_median(target, mask)
    residuals = sorted(abs(difference[mask]))
    dropped = int(trim * len(residuals))
    return sum(residuals[: len(residuals) - dropped]) / (2 * len(residuals))


def reference_gradient(residual: np.ndarray, mask: np.ndarray, scales: int = 4) -> float:
    loss = 0.0
    for k in range(scales):
        r, m = residual[:: 2**k, :: 2**k], mask[:: 2**k, :: 2**k]
        total = 0.0
        for row, column in np.ndindex(*m.shape):
            for other in ((row + 1, column), (row, column + 1)):
                inside = other[0] < m.shape[0] and other[1] < m.shape[1]
                if inside and m[row, column] and m[other]:
                    total += abs(r[other] - r[row, column])
        loss += total / m.sum() if m.sum() else 0.0
    return loss


def reference_gradient_least_squares(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    scale, shift = lstsq_fit(prediction, target, mask)
    return reference_gradient(scale * prediction + shift - target, mask)


def reference_gradient_median(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    return reference_gradient(normalise_by_median(prediction, mask) - normalise_by_median(target, mask), mask)


REFERENCES = {
    "ssi": reference_ssi,
    "trimmed": reference_trimmed,
    "gradient": reference_gradient_least_squares,
    "gradient_median": reference_gradient_median,
    "l1": lambda p, t, m: np.mean([abs(p[i] - t[i]) for i in np.ndindex(*m.shape) if m[i]]),
    "mse": lambda p, t, m: np.mean([(p[i] - t[i]) ** 2 for i in np.ndindex(*m.shape) if m[i]]),
    "gradient_none": lambda p, t, m: reference_gradient(p - t, m),
}


def batch(seed: int = 0, shape: tuple[int, int, int] = (3, 19, 26), share: float = 0.7, dtype=torch.float64):
    """Prediction and target that resemble each other, and a random mask. The target is in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images, height, width = shape
    target = torch.rand(images, 1, height, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    prediction = 3 * target + 0.5 + 0.4 * noise
    mask = torch.rand(target.shape, generator=generator) < share
    return prediction.to(dtype), target.to(dtype), mask


def value_and_gradient(loss: Loss, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target, mask)
    value.backward()
    return value.detach(), prediction.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("shape", "share"), [((3, 19, 26), 0.7), ((2, 40, 33), 0.04), ((2, 1, 37), 1.0), ((4, 5, 3), 0.9)]
)
def test_a_loss_is_the_mean_over_images_of_its_reference(name: str, shape: tuple[int, int, int], share: float) -> None:
    for seed in range(3):
        prediction, target, mask = batch(seed, shape, share)
        images = zip(prediction[:, 0].numpy(), target[:, 0].numpy(), mask[:, 0].numpy(), strict=True)
        expected = np.mean([REFERENCES[name](*image) for image in images])
        assert LOSSES[name](prediction, target, mask).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_agrees_with_the_float64_reference_far_from_zero(name: str) -> None:
    # Inverse depth of a MiDaS network: spread of some units on a level of thousands.
    prediction, target, mask = batch(shape=(1, 30, 40))
    prediction = (prediction + 3000).float()
    p, t, m = prediction[0, 0].double().numpy(), target[0, 0].numpy(), mask[0, 0].numpy()
    assert LOSSES[name](prediction, target.float(), mask).item() == pytest.approx(REFERENCES[name](p, t, m), rel=2e-4)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.5, 0.9])
def test_trimmed_drops_the_asked_share(trim: float) -> None:
    prediction, target, mask = batch(shape=(1, 20, 20))
    expected = reference_trimmed(prediction[0, 0].numpy(), target[0, 0].numpy(), mask[0, 0].numpy(), trim)
    assert trimmed_mae_loss(prediction, target, mask, trim).item() == pytest.approx(expected, rel=1e-9)


def test_the_median_is_torchs_lower_one() -> None:
    # With four pixels the lower median is 1: deviations 1, 0, 1, 9, mean 2.75. The target is normalised already.
    prediction = torch.tensor([0.0, 1.0, 2.0, 10.0]).view(1, 1, 2, 2).double()
    target = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2).double()
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    residuals = sorted(abs(p / 2.75 - t) for p, t in zip([-1, 0, 1, 9], [-1, 0, 1, 2], strict=True))
    assert target.flatten().median() == 0
    assert trimmed_mae_loss(prediction, target, mask, trim=0.25).item() == pytest.approx(sum(residuals[:3]) / 8)


@invariant_loss
@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (0.01, 5.0), (700.0, -300.0)])
def test_scale_and_shift_of_the_prediction_do_not_matter(loss: Loss, scale: float, shift: float) -> None:
    prediction, target, mask = batch()
    moved = loss(scale * prediction + shift, target, mask)
    torch.testing.assert_close(moved, loss(prediction, target, mask), rtol=1e-7, atol=0)


@invariant_loss
def test_an_affine_prediction_costs_nothing(loss: Loss) -> None:
    _, target, mask = batch()
    assert loss(7 * target - 3, target, mask).item() == pytest.approx(0, abs=1e-12)
    assert loss(target + torch.randn_like(target), target, mask) > 0.01


@every_loss
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_invalid_pixels_are_not_seen(loss: Loss, garbage: float) -> None:
    prediction, target, mask = batch(dtype=torch.float32)
    value, gradient = value_and_gradient(loss, prediction, target, mask)
    spoilt = [torch.where(mask, tensor, garbage) for tensor in (prediction, target)]
    spoilt_value, spoilt_gradient = value_and_gradient(loss, *spoilt, mask)
    assert spoilt_value == value
    assert torch.equal(spoilt_gradient, gradient)
    assert (gradient[~mask] == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["empty", "one_pixel", "constant", "both_constant", "all_zero"])
def test_value_and_gradient_are_finite_when_there_is_nothing_to_fit(loss: Loss, dtype: torch.dtype, case: str) -> None:
    prediction, target, mask = batch(dtype=dtype)
    if case == "empty":
        mask = torch.zeros_like(mask)
    elif case == "one_pixel":
        mask = torch.zeros_like(mask)
        mask[:, :, 3, 4] = True
    elif case == "constant":
        prediction = torch.full_like(prediction, 0.1)  # not exact in binary: its mean is not quite 0.1
    elif case == "both_constant":
        prediction, target = torch.full_like(prediction, 0.1), torch.full_like(target, 0.7)
    else:
        prediction = torch.zeros_like(prediction)
    value, gradient = value_and_gradient(loss, prediction, target, mask)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100
    if case == "empty":
        assert value == 0
        assert (gradient == 0).all()


@every_loss
def test_analytic_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    for seed in range(2):
        prediction, target, mask = batch(seed, shape=(2, 5, 6))
        assert torch.autograd.gradcheck(lambda p, t=target, m=mask: loss(p, t, m), prediction.requires_grad_())


@every_loss
def test_an_empty_image_counts_nothing_in_a_mean_over_all_images(loss: Loss) -> None:
    prediction, target, mask = batch(shape=(3, 19, 26))
    mask[1] = False
    alone = [loss(prediction[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in (0, 2)]
    torch.testing.assert_close(loss(prediction, target, mask), (alone[0] + alone[1]) / 3)


@every_loss
def test_the_mean_over_two_equal_ranks_is_the_loss_of_the_whole_batch(loss: Loss) -> None:
    prediction, target, mask = batch(shape=(6, 12, 11), share=0.3)
    mask[4] = False
    whole, whole_gradient = value_and_gradient(loss, prediction, target, mask)
    ranks = [value_and_gradient(loss, prediction[r], target[r], mask[r]) for r in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, whole)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in ranks]) / 2, whole_gradient)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_keeps_the_dtype_and_is_about_right_in_it(loss: Loss, dtype: torch.dtype) -> None:
    prediction, target, mask = batch(dtype=dtype)
    value = loss(prediction, target, mask)
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), loss(prediction.double(), target.double(), mask), rtol=1e-2, atol=0)


def test_one_outlier_in_the_target_moves_the_trimmed_form_little_and_least_squares_much() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        target = torch.rand(1, 1, 25, 40, generator=generator, dtype=torch.float64)
        prediction = target + 0.02 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
        mask = torch.ones_like(target, dtype=torch.bool)
        spoilt = target.clone()
        spoilt[0, 0, 12, 20] = 1.5
        change = {
            loss: abs(loss(prediction, spoilt, mask) / loss(prediction, target, mask) - 1)
            for loss in (trimmed_mae_loss, ssi_loss)
        }
        assert change[trimmed_mae_loss] < 0.01
        assert change[ssi_loss] > 0.5


def test_a_trimmed_pixel_has_no_residual_of_its_own_but_enters_the_deviation() -> None:
    prediction, target, mask = batch(shape=(1, 20, 20), share=1.0)
    untrimmed, trimmed = trimmed_mae_loss(prediction, target, mask, 0.0), trimmed_mae_loss(prediction, target, mask)
    assert 0 < trimmed < untrimmed
    prediction[0, 0, 0, 0] = 1e6  # far beyond being trimmed: only the deviation, and so everything else, sees it
    assert trimmed_mae_loss(prediction, target, mask) > 1.5 * trimmed


@pytest.mark.parametrize("trim", [-0.1, 1.0, 20.0])
def test_an_impossible_trim_is_refused(trim: float) -> None:
    with pytest.raises(MdeError, match="trim"):
        trimmed_mae_loss(*batch(), trim)


def test_an_unknown_alignment_is_refused() -> None:
    with pytest.raises(MdeError, match="least_squares"):
        gradient_matching_loss(*batch(), align="mean")


@every_loss
def test_shapes_that_would_broadcast_are_refused(loss: Loss) -> None:
    prediction, target, mask = batch()
    with pytest.raises(ValueError, match="shape"):
        loss(prediction, target[:1], mask)
    with pytest.raises(ValueError, match="shape"):
        loss(prediction[:, 0], target[:, 0], mask[:, 0])


def test_alignment_is_the_least_squares_fit_of_each_image() -> None:
    prediction, target, mask = batch(share=0.1)
    prediction[1] *= -1  # a negative scale is kept
    scale, shift = align_scale_shift(prediction, target, mask)
    for i in range(3):
        expected = lstsq_fit(prediction[i, 0].numpy(), target[i, 0].numpy(), mask[i, 0].numpy())
        assert (scale[i].item(), shift[i].item()) == pytest.approx(expected, rel=1e-9)
    assert scale[1] < 0 < scale[0]


def test_the_gradient_flows_through_the_alignment() -> None:
    prediction, target, mask = batch(shape=(2, 4, 5))
    assert torch.autograd.gradcheck(lambda p, t: align_scale_shift(p, t, mask), (prediction.requires_grad_(), target))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [0.0, 0.1, 1234.567, -1e-3])
def test_a_constant_prediction_has_scale_0_and_shift_the_mean(dtype: torch.dtype, level: float) -> None:
    _, target, mask = batch(dtype=dtype)
    scale, shift = align_scale_shift(torch.full_like(target, level), target, mask)
    assert (scale == 0).all()
    for i in range(3):
        assert shift[i].item() == pytest.approx(target[i][mask[i]].mean().item(), rel=1e-5)


def test_the_target_is_inverse_depth_over_its_largest() -> None:
    depth = torch.tensor([[2.0, 4.0, torch.inf, 0.0], [8.0, torch.nan, -1.0, 1.0]]).view(1, 1, 2, 4)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]]).view(1, 1, 2, 4)
    expected = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    assert torch.equal(inverse_depth_target(depth, mask), expected)


@pytest.mark.parametrize("depth", [torch.inf, 1e-40, 3e38, 0.0])
def test_the_target_is_finite_for_extreme_depths(depth: float) -> None:
    depths = torch.full((2, 1, 3, 3), depth)
    mask = torch.ones_like(depths, dtype=torch.bool)
    mask[1] = False
    target = inverse_depth_target(depths, mask)
    assert target.isfinite().all()
    assert (target[0] == (1.0 if 0 < depth < torch.inf else 0.0)).all()
    assert (target[1] == 0).all()
