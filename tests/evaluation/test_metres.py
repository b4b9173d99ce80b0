"""One scale and shift for many frames: found again under gross outliers, refused where they mean nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.data.folder import FolderFrames
from mde.errors import MdeError
from mde.evaluation.metres import check_calibration, fit_calibration

CAP = 9.0
SCALE, SHIFT = 0.004, -0.05
Frames = tuple[list[Tensor], list[Tensor], list[Tensor]]


def frames(count: int = 3, seed: int = 0, noise: float = 0.0, size: tuple[int, int] = (40, 50)) -> Frames:
    """Inverse depth of SCALE and SHIFT with relative `noise`, depth of 0.5 to 8 m, holes, and depth beyond the cap."""
    rng = np.random.default_rng(seed)
    inverse_depths, depths, masks = [], [], []
    for _ in range(count):
        depth = rng.uniform(0.5, 8, (1, 1, *size))
        inverse = (1 / depth - SHIFT) / SCALE * rng.normal(1, noise, depth.shape)
        mask = rng.random(depth.shape) < 0.9
        depth[..., 0, :] = 30.0
        inverse_depths.append(torch.from_numpy(inverse))
        depths.append(torch.from_numpy(np.where(mask, depth, 0.0)))
        masks.append(torch.from_numpy(mask))
    return inverse_depths, depths, masks


def spoil(depths: list[Tensor], share: float, seed: int = 1) -> list[Tensor]:
    """A share of the pixels takes on a depth that has nothing to do with what is there, mostly a far one."""
    rng = np.random.default_rng(seed)
    return [
        torch.where(
            torch.from_numpy(rng.random(depth.shape) < share), torch.from_numpy(rng.uniform(3, 9, depth.shape)), depth
        )
        for depth in depths
    ]


def reference_fit(inverse_depths: list[Tensor], depths: list[Tensor], masks: list[Tensor]) -> np.ndarray:
    """Re-weighted least squares through NumPy's own solver, on every pixel, pixel lists built one by one."""
    pairs = [
        (d[i].item(), 1 / g[i].item())
        for d, g, m in zip(inverse_depths, depths, masks, strict=True)
        for i in np.ndindex(*g.shape)
        if m[i] and 0 < g[i] <= CAP
    ]
    x, y = np.array(pairs).T
    design, weight = np.stack([x, np.ones_like(x)], axis=1), np.ones_like(x)
    for step in range(200):
        root = np.sqrt(weight)
        line = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        u = np.abs(design @ line - y)
        u = u / (1.4826 * np.median(u))
        weight = (
            np.minimum(1, 1.345 / u.clip(1e-12)) if step < 100 else np.where(u < 4.685, (1 - (u / 4.685) ** 2) ** 2, 0)
        )
    return line


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_scale_and_shift_are_found_again_under_gross_outliers(share: float) -> None:
    inverse_depths, depths, masks = frames()
    scale, shift = fit_calibration(inverse_depths, spoil(depths, share), masks, CAP)
    assert scale == pytest.approx(SCALE, rel=1e-6)
    assert shift == pytest.approx(SHIFT, rel=1e-6)


def test_least_squares_alone_would_not_have_found_them() -> None:
    inverse_depths, depths, masks = frames()
    spoilt = spoil(depths, 0.2)
    known = [mask & (depth > 0) & (depth <= CAP) for depth, mask in zip(spoilt, masks, strict=True)]
    x = torch.cat([d[v] for d, v in zip(inverse_depths, known, strict=True)]).numpy()
    y = 1 / torch.cat([g[v] for g, v in zip(spoilt, known, strict=True)]).numpy()
    assert abs(np.polyfit(x, y, 1)[0] / SCALE - 1) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_its_definition(seed: int) -> None:
    inverse_depths, depths, masks = frames(2, seed, noise=0.05)
    depths = spoil(depths, 0.2)
    found = fit_calibration(inverse_depths, depths, masks, CAP)
    np.testing.assert_allclose(
        found, reference_fit(inverse_depths, depths, masks), rtol=1e-3
    )  # torch's median is the lower of two


def test_units_of_the_network_do_not_matter() -> None:
    inverse_depths, depths, masks = frames(noise=0.05)
    scale, shift = fit_calibration(inverse_depths, depths, masks, CAP)
    other = fit_calibration([100 * inverse + 7 for inverse in inverse_depths], depths, masks, CAP)
    assert other == pytest.approx((scale / 100, shift - 7 * scale / 100), rel=1e-6)


def test_large_frames_are_thinned_and_say_the_same() -> None:
    inverse_depths, depths, masks = frames(2, noise=0.05, size=(200, 250))
    scale, shift = fit_calibration(inverse_depths, depths, masks, CAP)
    expected = reference_fit(inverse_depths, depths, masks)
    assert scale == pytest.approx(expected[0], rel=0.02)
    assert shift == pytest.approx(expected[1], abs=0.005)
    assert check_calibration(scale, shift, inverse_depths, depths, masks, CAP).pixels == 2 * 5000


def test_pixels_that_are_not_valid_have_no_influence() -> None:
    inverse_depths, depths, masks = frames(noise=0.05)
    expected = fit_calibration(inverse_depths, depths, masks, CAP)
    left_out = [~mask | (depth > CAP) for depth, mask in zip(depths, masks, strict=True)]
    spoilt = [torch.where(out, torch.nan, inverse) for inverse, out in zip(inverse_depths, left_out, strict=True)]
    assert fit_calibration(spoilt, depths, masks, CAP) == expected


def test_the_check_says_how_far_a_calibration_holds() -> None:
    inverse_depths, depths, masks = frames(noise=0.03)
    spoilt = spoil(depths, 0.3)
    check = check_calibration(SCALE, SHIFT, inverse_depths, spoilt, masks, CAP)
    errors = []
    for inverse, depth, mask in zip(inverse_depths, spoilt, masks, strict=True):
        known = (mask & (depth > 0) & (depth <= CAP)).numpy()
        metres = 1 / np.maximum(SCALE * inverse.numpy() + SHIFT, 1 / CAP)
        errors.append(np.abs(metres - depth.numpy())[known] / depth.numpy()[known])
    error = np.concatenate(errors)
    assert (check.frames, check.pixels) == (3, len(error))
    assert check.inliers == pytest.approx(np.mean(error <= 0.1))
    assert check.median_error == pytest.approx(np.median(error), rel=1e-2)
    assert check.inliers < check_calibration(SCALE, SHIFT, inverse_depths, depths, masks, CAP).inliers


def test_a_calibration_of_one_room_fits_a_real_recordings_other_frames() -> None:
    folder = Path(os.environ.get("MDE_SHARED", "../shared")) / "data/redkitchen"
    if not folder.is_dir():
        pytest.skip("no real frames (MDE_SHARED)")
    kitchen = FolderFrames(folder)
    samples = [kitchen[index] for index in range(0, 40, 10)]
    depths, masks = [sample.depth[None] for sample in samples], [sample.mask[None] for sample in samples]
    predictions = [torch.where(depth > 0, (1 / depth.clamp(min=0.1) - SHIFT) / SCALE, 0) for depth in depths]
    found = fit_calibration(predictions[:2], spoil(depths[:2], 0.2), masks[:2], CAP)
    assert found == pytest.approx((SCALE, SHIFT), rel=1e-4)
    assert check_calibration(*found, predictions[2:], depths[2:], masks[2:], CAP).inliers == 1


def refusal(inverse_depths: list[Tensor], depths: list[Tensor], masks: list[Tensor]) -> str:
    with pytest.raises(MdeError) as raised:
        fit_calibration(inverse_depths, depths, masks, CAP)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_calibrated_is_refused_in_one_line() -> None:
    inverse_depths, depths, masks = frames()
    assert "calibrate: 0 pixels of 0 frames have a depth up to 9 m" in refusal([], [], [])
    blind = [torch.zeros_like(mask) for mask in masks]
    assert "calibrate: 0 pixels of 3 frames" in refusal(inverse_depths, depths, blind)
    for wrong, scale in (
        ([-inverse for inverse in inverse_depths], f"-{SCALE}"),
        ([torch.full_like(depth, 0.1) for depth in depths], "0"),
        ([inverse * torch.nan for inverse in inverse_depths], "nan"),
    ):
        assert f"calibrate: the scale comes out as {scale}, not above 0" in refusal(wrong, depths, masks)
    wall = [2 + 0.1 * torch.rand(depth.shape, dtype=depth.dtype) for depth in depths]
    assert "calibrate: a flat scene, depth from 2.0" in refusal([1 / depth for depth in wall], wall, masks)


def test_depths_that_say_nothing_about_the_network_are_not_a_calibration_that_holds() -> None:
    inverse_depths, depths, masks = frames()
    shuffled = [depth.flatten()[torch.randperm(depth.numel())].view_as(depth) for depth in depths]
    check = check_calibration(SCALE, SHIFT, inverse_depths, shuffled, masks, CAP)
    assert check.inliers < 0.3
    assert check.median_error > 0.2
