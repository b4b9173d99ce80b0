"""The bundle's arithmetic is the package's."""

import numpy as np
import pytest
import torch

from mde.data.transforms import resize_image
from mde.jetson import arithmetic
from mde.losses import align_scale_shift
from mde.metrics import METRICS, depth_metrics, resize_prediction

SIZES = [((48, 64), (32, 32)), ((32, 32), (50, 75)), ((120, 37), (64, 64)), ((1, 5), (7, 2)), ((64, 64), (64, 64))]


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_images_are_resized_as_the_package_does(size, wanted):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = 255 * resize_image(torch.from_numpy(image).permute(2, 0, 1), wanted).permute(1, 2, 0).numpy()
    resized = arithmetic.resize_antialiased(image, wanted)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-3)


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_maps_are_resized_as_the_package_does(size, wanted):
    values = np.random.default_rng(1).random(size, np.float32)
    expected = resize_prediction(torch.from_numpy(values)[None, None], wanted)[0, 0].numpy()
    resized = arithmetic.resize_bilinear(values, wanted)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def frame(seed):
    """Inverse depth of another scale and shift, depth 0.5-12 m with holes, mask."""
    draw = np.random.default_rng(seed)
    depth = draw.uniform(0.5, 12, (24, 32))
    inverse_depth = 40 / depth + 3 + draw.normal(0, 2, depth.shape)
    depth[draw.random(depth.shape) < 0.1] = 0
    depth[0, :3] = np.nan, np.inf, -1
    return inverse_depth, depth, draw.random(depth.shape) < 0.8


def one_pixel(inverse_depth, depth, mask):
    mask[:] = False
    mask[5, 5], depth[5, 5] = True, 2.0
    return inverse_depth, depth, mask


CASES = {
    "ordinary": lambda d, g, m: (d, g, m),
    "negative scale": lambda d, g, m: (-d, g, m),
    "constant prediction": lambda d, g, m: (np.full_like(d, 7.0), g, m),
    "one pixel": one_pixel,
    "empty mask": lambda d, g, m: (d, g, np.zeros_like(m)),
    "all beyond the cap": lambda d, g, m: (d, np.full_like(g, 11.0), m),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("align", [True, False])
def test_metrics_are_the_packages(case, align):
    inverse_depth, depth, mask = CASES[case](*frame(0))
    expected = depth_metrics(*(torch.from_numpy(a)[None, None] for a in (inverse_depth, depth, mask)), 10.0, align)
    found = arithmetic.depth_metrics(inverse_depth, depth, mask, 10.0, align)
    assert tuple(arithmetic.METRICS) == METRICS
    for name in METRICS:
        np.testing.assert_allclose(
            found[name], expected[name].item(), rtol=1e-7, err_msg=name
        )  # log(10) is float32 there


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alignment_is_the_packages(case, dtype):
    inverse_depth, depth, mask = CASES[case](*frame(1))
    mask &= (depth > 0) & (depth < 10)
    arrays = inverse_depth.astype(dtype), (1 / np.where(mask, depth, 1)).astype(dtype), mask
    expected = [value.item() for value in align_scale_shift(*(torch.from_numpy(a)[None, None] for a in arrays))]
    np.testing.assert_allclose(arithmetic.align_scale_shift(*arrays), expected, rtol=1e-4, atol=1e-6)


def test_metric_depth_stops_at_the_cap():
    np.testing.assert_allclose(arithmetic.metric_depth(np.array([-5.0, 0.0, 1.0]), 0.4, 0.1, 10.0), [10, 10, 2])
