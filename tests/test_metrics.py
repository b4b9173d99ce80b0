"""Metrics against NumPy, and what the zero-shot protocol promises."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mde.errors import MdeError
from mde.metrics import (
    METRICS,
    DepthMetrics,
    align_scale_shift,
    depth_metrics,
    raw_metrics,
    resize_prediction,
    vertical_ramp,
)

KEYS = {
    "protocol",
    "alignment",
    "frames",
    *METRICS,
    "pooled_rmse",
    "coverage",
    "negative_scale_frames",
    "skipped_frames",
}


def reference_metrics(inverse: np.ndarray, depth: np.ndarray, mask: np.ndarray, cap: float, align=True) -> dict:
    """One image, float64, straight from the definitions."""
    pairs = [(inverse[i], depth[i]) for i in np.ndindex(*depth.shape) if mask[i] and 0 < depth[i] <= cap]
    d, g = np.array(pairs, dtype=np.float64).T
    if align == "median":
        p = 1 / d
        p = np.minimum(p * np.sort(g)[(len(g) - 1) // 2] / np.sort(p)[(len(p) - 1) // 2], cap)
    elif align == "depth":
        slope, intercept = np.polyfit(1 / d, g, 1)
        p = np.clip(slope / d + intercept, 1e-3, cap)
    else:
        if align:
            scale, shift = np.linalg.lstsq(np.stack([d, np.ones_like(d)], axis=1), 1 / g, rcond=None)[0]
            d = scale * d + shift
        p = 1 / np.maximum(d, 1 / cap)
    e = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    return {
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "mae": np.mean(np.abs(p - g)),
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.5625),
        "delta3": np.mean(ratio < 1.953125),
    }


def frames(seed: int = 0, shape=(3, 21, 28), dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Relative inverse depth, depth of 0.5 to 15 m with some sky and some holes, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    images, height, width = shape
    depth = 0.5 + 14.5 * torch.rand(images, 1, height, width, generator=generator).double() ** 2
    noise = torch.randn(depth.shape, generator=generator).double()
    inverse = 200 / depth * (1 + 0.1 * noise) + 30
    mask = torch.rand(depth.shape, generator=generator) < 0.6
    depth[torch.rand(depth.shape, generator=generator) < 0.1] = torch.inf
    depth[~mask] = 0
    return inverse.to(dtype), depth.to(dtype), mask


@pytest.mark.parametrize("align", [True, "median", "depth", False])
@pytest.mark.parametrize("shape", [(3, 21, 28), (1, 1, 40), (4, 7, 5), (2, 33, 2)])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_every_metric_of_every_image_is_its_definition(align, shape, dtype: torch.dtype, rel: float) -> None:
    for seed in range(3):
        inverse, depth, mask = frames(seed, shape, dtype)
        if align is False:
            inverse = (inverse - 30) / 200
        figures = depth_metrics(inverse, depth, mask, 10.0, align)
        assert tuple(figures) == METRICS
        for i in range(shape[0]):
            image = (tensor[i, 0].numpy() for tensor in (inverse, depth, mask))
            expected = reference_metrics(*image, cap=10.0, align=align)
            for name, figure in figures.items():
                assert figure.shape == (shape[0],)
                assert figure[i].item() == pytest.approx(expected[name], rel=rel, abs=1e-5), name


def test_an_affine_prediction_is_perfect_and_a_negative_scale_is_no_obstacle() -> None:
    _, depth, mask = frames()
    for scale, shift in ((300.0, -7.0), (-0.5, 2.0)):
        inverse = scale / torch.where(depth > 0, depth, 1) + shift
        figures = depth_metrics(inverse, depth, mask, 10.0)
        for name in METRICS:
            perfect = 1.0 if name.startswith("delta") else 0.0
            torch.testing.assert_close(figures[name], torch.full((3,), perfect), rtol=0, atol=2e-3)


def test_a_prediction_that_is_affine_in_depth_is_perfect_when_fitted_there_and_only_there() -> None:
    _, depth, mask = frames()
    predicted = 0.3 * torch.where(depth > 0, depth, 1) + 2  # metres, but for scale and shift
    figures = depth_metrics(1 / predicted, depth, mask, 10.0, "depth")
    torch.testing.assert_close(figures["abs_rel"], torch.zeros(3), rtol=0, atol=1e-5)
    assert (depth_metrics(1 / predicted, depth, mask, 10.0)["abs_rel"] > 0.05).all()


def test_a_line_in_depth_that_falls_below_zero_counts_as_a_millimetre() -> None:
    depth = torch.tensor([1.0, 1.0, 1.0, 9.0]).view(1, 1, 2, 2)
    predicted = torch.tensor([1.0, 5.0, 6.0, 12.0]).view(1, 1, 2, 2)
    figures = depth_metrics(1 / predicted, depth, depth > 0, 10.0, "depth")
    slope, intercept = np.polyfit([1, 5, 6, 12], [1, 1, 1, 9], 1)
    assert slope + intercept < 0
    expected = np.abs(np.log(np.maximum(slope * np.array([1, 5, 6, 12]) + intercept, 1e-3) / [1, 1, 1, 9]))
    assert figures["rmse_log"].item() == pytest.approx(np.sqrt(np.mean(expected**2)), rel=1e-4)


def test_metric_inverse_depth_is_taken_as_it_is() -> None:
    _, depth, mask = frames()
    inverse = 1 / (1.1 * torch.where(depth > 0, depth, 1))
    torch.testing.assert_close(
        depth_metrics(inverse, depth, mask, cap=100.0, align=False)["abs_rel"], torch.full((3,), 0.1)
    )
    assert (depth_metrics(inverse, depth, mask, cap=100.0, align="median")["abs_rel"] < 1e-5).all()


@pytest.mark.parametrize("align", [True, "median", "depth", False])
def test_sky_holes_masked_pixels_and_depth_beyond_the_cap_change_nothing(align) -> None:
    inverse, depth, mask = frames()
    expected = depth_metrics(inverse, depth, mask, 10.0, align)
    left_out = ~(mask & (depth > 0) & (depth <= 10.0))
    assert (mask & left_out).any()  # sky and far pixels are known and still left out
    for garbage in (torch.nan, torch.inf, -5.0, 1e9):
        spoilt_inverse = torch.where(left_out, garbage, inverse)
        spoilt_depth = torch.where(left_out & ~mask, garbage, torch.where(left_out, 11.0, depth))
        figures = depth_metrics(spoilt_inverse, spoilt_depth, mask, 10.0, align)
        for name in METRICS:
            assert torch.equal(figures[name], expected[name]), name


def test_predictions_beyond_the_cap_or_below_zero_count_as_the_cap() -> None:
    depth, mask = torch.full((1, 1, 2, 2), 4.0), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    for inverse in (0.0, -3.0, 0.01):
        figures = depth_metrics(torch.full_like(depth, inverse), depth, mask, cap=10.0, align=False)
        assert figures["mae"].item() == pytest.approx(6.0)


@pytest.mark.parametrize("align", [True, "median", "depth"])
def test_a_constant_prediction_is_a_flat_wall_not_an_accident(align) -> None:
    _, depth, mask = frames()
    for level in (0.0, 0.1, 700.1):
        figures = depth_metrics(torch.full_like(depth, level), depth, mask, 10.0, align)
        for i in range(3):
            g = depth[i][mask[i] & (depth[i] <= 10.0)]
            wall = {"median": g.median(), "depth": g.mean(), True: 1 / (1 / g).mean()}[align]
            assert figures["mae"][i].item() == pytest.approx((g - wall).abs().mean().item(), rel=1e-4)


def test_an_image_without_a_valid_pixel_is_nan_and_leaves_the_others_alone() -> None:
    inverse, depth, mask = frames()
    expected = depth_metrics(inverse[::2], depth[::2], mask[::2], 10.0)
    mask[1] = False
    for align in (True, "median", False):
        assert all(figure[1].isnan() for figure in depth_metrics(inverse, depth, mask, 10.0, align).values())
    for name, figure in depth_metrics(inverse, depth, mask, 10.0).items():
        torch.testing.assert_close(figure[::2], expected[name])


def test_half_precision_predictions_are_evaluated_in_float32() -> None:
    inverse, depth, mask = frames()
    half, full = (depth_metrics(p, depth, mask, 10.0)["abs_rel"] for p in (inverse.half(), inverse))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-2, atol=0)


def test_the_raw_protocol_compares_apples_with_counts() -> None:
    inverse, depth, mask = frames()
    figures = raw_metrics(inverse, depth, mask, depth_unit=0.00025)
    for i in range(3):
        valid = (mask & (depth > 0) & (depth < torch.inf))[i].numpy()
        difference = inverse[i].numpy()[valid] - depth[i].numpy()[valid].astype(np.float64) / 0.00025
        assert figures["rmse"][i].item() == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-5)
        assert figures["mae"][i].item() == pytest.approx(np.mean(np.abs(difference)), rel=1e-5)
    # What was wrong with it: a perfect prediction loses against one that is nothing but large.
    perfect = raw_metrics(1 / depth.clamp(min=0.1), depth, mask, 0.00025)["rmse"]
    assert (raw_metrics(torch.full_like(depth, 1e4), depth, mask, 0.00025)["rmse"] < perfect).all()


def test_resizing_keeps_a_ramp_a_ramp_and_the_edges_in_place() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    wide = resize_prediction(ramp, (4, 32))
    centres = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(wide[0, 0, 0], centres.clamp(0, 7))
    assert resize_prediction(ramp, (4, 8)) is ramp


def test_the_ramp_grows_evenly_from_top_to_bottom() -> None:
    ramp = vertical_ramp(5, 3)
    assert ramp.shape == (1, 1, 5, 3)
    assert ramp[0, 0, :, 1].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert vertical_ramp(1, 2).isfinite().all()


# The accumulator.


def accumulate(metric: DepthMetrics, *batches: tuple) -> dict:
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def test_a_dataset_figure_is_the_mean_over_images_and_pooled_rmse_the_one_over_pixels() -> None:
    batches = [frames(seed, shape) for seed, shape in enumerate([(3, 21, 28), (2, 9, 10), (1, 30, 8)])]
    batches[0][2][0, :, 3:] = False  # images with few valid pixels, so that the two means differ
    result = accumulate(DepthMetrics(cap=10.0), *batches)
    assert set(result) == KEYS
    per_image = [depth_metrics(*batch, 10.0) for batch in batches]
    for name in METRICS:
        expected = torch.cat([figures[name] for figures in per_image]).double().mean().item()
        assert result[name] == pytest.approx(expected, rel=1e-6), name
    squares, count, pixels = 0.0, 0, 0
    for inverse, depth, mask in batches:
        valid = mask & (depth > 0) & (depth <= 10.0)
        for i in range(len(depth)):
            arrays = (tensor[i, 0].numpy() for tensor in (inverse, depth, mask))
            squares += reference_metrics(*arrays, cap=10.0)["rmse"] ** 2 * valid[i].sum().item()
        count, pixels = count + valid.sum().item(), pixels + valid.numel()
    assert result["pooled_rmse"] == pytest.approx((squares / count) ** 0.5, rel=1e-4)
    assert abs(result["pooled_rmse"] / result["rmse"] - 1) > 1e-3
    assert result["coverage"] == pytest.approx(count / pixels)
    assert (result["frames"], result["skipped_frames"], result["negative_scale_frames"]) == (6, 0, 0)
    assert (result["protocol"], result["alignment"]) == ("inverse_depth", "per_frame")


def test_negative_scales_and_skipped_frames_are_counted() -> None:
    inverse, depth, mask = frames(shape=(4, 12, 12))
    inverse[1] *= -1
    mask[2] = False
    result = accumulate(DepthMetrics(cap=10.0), (inverse, depth, mask))
    assert (result["frames"], result["skipped_frames"], result["negative_scale_frames"]) == (3, 1, 1)
    kept = [0, 1, 3]
    expected = depth_metrics(inverse[kept], depth[kept], mask[kept], 10.0)["mae"].mean().item()
    assert result["mae"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("align", "name"),
    [(True, "per_frame"), ("depth", "per_frame_in_depth"), ("median", "median"), (False, "frozen")],
)
def test_the_alignment_is_named_in_the_result(align, name: str) -> None:
    inverse, depth, mask = frames()
    result = accumulate(DepthMetrics(cap=10.0, align=align), (inverse, depth, mask))
    assert result["alignment"] == name
    assert result["rmse"] == pytest.approx(depth_metrics(inverse, depth, mask, 10.0, align)["rmse"].mean().item())


def test_the_raw_protocol_fills_only_what_it_has() -> None:
    inverse, depth, mask = frames()
    result = accumulate(DepthMetrics(cap=10.0, protocol="raw"), (inverse, depth, mask, 0.00025))
    assert set(result) == KEYS
    figures = raw_metrics(inverse, depth, mask, 0.00025)
    assert result["rmse"] == pytest.approx(figures["rmse"].mean().item(), rel=1e-6)
    assert result["mae"] == pytest.approx(figures["mae"].mean().item(), rel=1e-6)
    assert result["pooled_rmse"] > 1000
    assert {name for name in METRICS if result[name] is None} == set(METRICS) - {"rmse", "mae"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_results_are_json_even_when_there_is_nothing_or_nonsense() -> None:
    inverse, depth, mask = frames()
    nothing = accumulate(DepthMetrics(cap=10.0), (inverse, depth, torch.zeros_like(mask)))
    broken = accumulate(DepthMetrics(cap=10.0), (inverse * torch.nan, depth, mask))
    for result in (nothing, broken, DepthMetrics(cap=10.0).compute()):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result["rmse"] is None
    assert (nothing["frames"], nothing["skipped_frames"], nothing["coverage"]) == (0, 3, 0.0)


def test_states_add_up_over_ranks() -> None:
    batches = [frames(seed) for seed in range(4)]
    whole = DepthMetrics(cap=10.0)
    expected = accumulate(whole, *batches)
    ranks = [DepthMetrics(cap=10.0), DepthMetrics(cap=10.0)]
    for metric, share in zip(ranks, (batches[:2], batches[2:]), strict=True):
        accumulate(metric, *share)
    for name, reduce in whole._reductions.items():  # what torchmetrics does after gathering
        setattr(ranks[0], name, reduce(torch.stack([getattr(metric, name) for metric in ranks])))
    ranks[0]._computed = None
    assert ranks[0].compute() == pytest.approx(expected)
    whole.reset()
    assert accumulate(whole, batches[0])["frames"] == 3


@pytest.mark.parametrize("option", [{"protocol": "metres"}, {"align": "mean"}])
def test_unknown_options_are_refused(option: dict[str, str]) -> None:
    with pytest.raises(MdeError, match="choose"):
        DepthMetrics(cap=10.0, **option)


def test_alignment_of_a_resized_prediction_is_unbiased() -> None:
    # A smooth scene predicted at half the resolution: only the resizing separates it from the truth.
    truth = F.interpolate(torch.rand(1, 1, 4, 5, generator=torch.Generator().manual_seed(1)), (64, 80), mode="bicubic")
    depth = 1 / (truth.clamp(0, 1) + 0.2)
    inverse = F.avg_pool2d(1 / depth, 2) * 50 - 4
    resized = resize_prediction(inverse, (64, 80))
    scale, shift = align_scale_shift(resized, 1 / depth, depth > 0)
    assert scale.item() == pytest.approx(1 / 50, rel=0.02)
    assert shift.item() == pytest.approx(4 / 50, abs=0.01)
    assert depth_metrics(resized, depth, depth > 0, 10.0)["abs_rel"].item() < 0.02
