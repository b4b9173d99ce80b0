"""Errors by bin and stability over frames, against NumPy that looks at one pixel after the other."""

import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.evaluation.breakdown import ErrorBreakdown, Stability, near_depth_edge
from mde.losses import align_scale_shift
from mde.metrics import truth_mask

CAP = 9.5
Scene = tuple[Tensor, Tensor, Tensor, Tensor]


def scene(seed: int, size: tuple[int, int] = (24, 32)) -> Scene:
    """Predicted depth, depth of 0.3 to 12 m in patches, what of it is valid, and an image."""
    rng = np.random.default_rng(seed)
    patches = rng.uniform(0.3, 12, (size[0] // 8, size[1] // 8)).repeat(8, axis=0).repeat(8, axis=1)
    depth = torch.from_numpy(patches * rng.uniform(0.99, 1.01, size)).float()[None, None]
    mask = torch.from_numpy(rng.random(size) < 0.8)[None, None]
    predicted = depth * torch.from_numpy(rng.normal(1, 0.2, size).clip(0.5)).float()
    image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    return predicted, torch.where(mask, depth, 0), truth_mask(depth, mask, CAP), image


def reference_edges(depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`near_depth_edge` of (h, w), pixel by pixel."""
    height, width = depth.shape
    filled = np.where(valid, depth, 0.0)

    def around(values: np.ndarray, y: int, x: int, radius: int) -> np.ndarray:
        return values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]

    for _ in range(2):
        before = filled.copy()
        for y, x in np.ndindex(height, width):
            if before[y, x] == 0:
                filled[y, x] = around(before, y, x, 1).max()
    edge = np.zeros(depth.shape, bool)
    for y, x in np.ndindex(height, width):
        near = around(filled, y, x, 1)
        near = near[near > 0]
        if filled[y, x] > 0:
            edge[y, x] = (near > 1.05 * filled[y, x]).any() or (filled[y, x] > 1.05 * near).any()
    radius = max(1, round(max(height, width) / 100))
    return np.array([[around(edge, y, x, radius).any() for x in range(width)] for y in range(height)])


def reference_figures(p: np.ndarray, g: np.ndarray) -> dict[str, float | int | None]:
    if not len(g):
        return {"pixels": 0, "rmse": None, "mae": None, "abs_rel": None, "delta1": None}
    return {
        "pixels": len(g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "mae": np.mean(np.abs(p - g)),
        "abs_rel": np.mean(np.abs(p - g) / g),
        "delta1": np.mean(np.maximum(p / g, g / p) < 1.25),
    }


def breakdown(*scenes: Scene) -> dict:
    errors = ErrorBreakdown(CAP)
    for one in scenes:
        errors.update(*one)
    return errors.compute()


def assert_same(found: dict, expected: dict, rel: float = 1e-9) -> None:
    for key, value in expected.items():
        known = value is not None and not isinstance(value, str)
        assert found[key] == (pytest.approx(value, rel=rel) if known else value), key


def test_every_bin_holds_the_figures_of_its_pixels() -> None:
    scenes = [scene(seed) for seed in range(3)]
    columns = []
    for predicted, depth, valid, image in scenes:
        known = valid[0, 0].numpy()
        edges = reference_edges(depth[0, 0].double().numpy(), known)
        luma = np.round(np.tensordot([0.299, 0.587, 0.114], image.double().numpy(), 1))
        planes = (predicted[0, 0].double().numpy(), depth[0, 0].double().numpy(), edges, luma)
        columns.append(np.stack([plane[known] for plane in planes]))
    p, g, edge, luma = np.concatenate(columns, axis=1)
    result = breakdown(*scenes)
    assert [(row["from"], row["to"]) for row in result["distance"]] == [(i, min(i + 1.0, CAP)) for i in range(10)]
    for row in result["distance"]:
        inside = (g >= row["from"]) & ((g < row["to"]) | (row["to"] == CAP))
        assert_same(row, reference_figures(p[inside], g[inside]))
    assert [row["name"] for row in result["edges"]] == ["near depth edges", "elsewhere"]
    assert 0.2 < edge.mean() < 0.8
    for row, inside in zip(result["edges"], (edge == 1, edge == 0), strict=True):
        assert_same(row, reference_figures(p[inside], g[inside]))
    assert [(row["from"], row["to"]) for row in result["brightness"]] == [(0, 64), (64, 128), (128, 192), (192, 256)]
    for row in result["brightness"]:
        inside = (luma >= row["from"]) & (luma < row["to"])
        assert_same(row, reference_figures(p[inside], g[inside]))
    for bins in result.values():
        assert sum(row["pixels"] for row in bins) == len(g)


def test_the_order_of_the_frames_changes_nothing() -> None:
    scenes = [scene(seed, size) for seed, size in enumerate([(24, 32), (16, 40), (8, 8)])]
    forward, backward = breakdown(*scenes), breakdown(*scenes[::-1])
    for kind, bins in forward.items():
        for row, other in zip(bins, backward[kind], strict=True):
            assert_same(other, row)


def test_metres_grow_with_the_scene_and_shares_do_not() -> None:
    predicted, depth, valid, image = scene(0)
    near, far = ErrorBreakdown(CAP), ErrorBreakdown(2 * CAP)
    near.update(predicted, depth, valid, image)
    far.update(2 * predicted, 2 * depth, valid, image)
    for kind in ("edges", "brightness"):
        for row, other in zip(near.compute()[kind], far.compute()[kind], strict=True):
            doubled = {key: 2 * row[key] for key in ("rmse", "mae")}
            assert_same(other, {key: row[key] for key in ("pixels", "abs_rel", "delta1")} | doubled)


def test_what_lies_outside_the_mask_has_no_influence_and_empty_bins_are_none() -> None:
    predicted, depth, valid, image = scene(1)
    expected = breakdown((predicted, depth, valid, image))
    for garbage in (torch.nan, torch.inf, -3.0):
        spoilt = (torch.where(valid, predicted, garbage), torch.where(valid, depth, garbage), valid, image)
        assert breakdown(spoilt) == expected
    nothing = breakdown((predicted, depth, torch.zeros_like(valid), image))
    for result in (nothing, ErrorBreakdown(CAP).compute()):
        assert {row["pixels"] for bins in result.values() for row in bins} == {0}
        assert {row["rmse"] for bins in result.values() for row in bins} == {None}
    broken = breakdown((predicted * torch.nan, depth, valid, image))
    assert json.loads(json.dumps(broken, allow_nan=False)) == broken


def test_a_depth_of_exactly_the_cap_is_in_the_last_bin() -> None:
    depth = torch.full((1, 1, 2, 2), CAP)
    errors = ErrorBreakdown(CAP)
    errors.update(depth, depth, depth > 0, torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert [row["pixels"] for row in errors.compute()["distance"]] == [0] * 9 + [4]


@pytest.mark.parametrize("size", [(24, 32), (9, 250), (1, 5)])
def test_edges_are_their_definition(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    depth = rng.uniform(1, 1.08, size) * np.where(np.arange(size[1]) < size[1] // 2, 1, 3)
    valid = rng.random(size) < 0.5
    found = near_depth_edge(torch.from_numpy(depth)[None, None], torch.from_numpy(valid)[None, None])
    np.testing.assert_array_equal(found[0, 0], reference_edges(depth, valid))


def edges_of(depth: Tensor) -> Tensor:
    return near_depth_edge(depth[None, None], depth[None, None] > 0)[0, 0]


def test_a_hole_is_no_edge_and_a_step_across_a_narrow_hole_is_one() -> None:
    wall = torch.full((20, 60), 2.0)
    wall[5:9, 10:14] = 0
    wall[12:, 30:] = 0
    assert not edges_of(wall).any()
    step = torch.where(torch.arange(60) < 30, 2.0, 3.0).expand(20, 60).clone()
    expected = torch.zeros(60, dtype=torch.bool)
    expected[28:32] = True  # the two pixels at the step, and one more on each side
    assert torch.equal(edges_of(step)[10], expected)
    step[:, 28:32] = 0
    assert edges_of(step).any(dim=1).all()
    slope = torch.linspace(1, 3, 60).expand(20, 60)  # up to 3.4 % from pixel to pixel
    assert not edges_of(slope).any()


Video = list[tuple[Tensor, Tensor, Tensor, float, float]]


def video(frames: int = 5, seed: int = 0, moving: float = 0.3) -> Video:
    """Frames of a scene of which a share moves; the prediction's scale and shift and some noise change."""
    rng = np.random.default_rng(seed)
    shape = (1, 1, 16, 20)
    still = rng.uniform(1, 6, shape)
    result = []
    for _ in range(frames):
        depth = np.where(rng.random(shape) < moving, rng.uniform(1, 6, shape), still * rng.normal(1, 0.003, shape))
        inverse = rng.uniform(150, 250) * (1 / depth) * rng.normal(1, 0.05, shape) + rng.uniform(-3, 3)
        tensors = torch.from_numpy(inverse).float(), torch.from_numpy(depth).float()
        valid = torch.from_numpy(rng.random(shape) < 0.9)
        scale, shift = align_scale_shift(tensors[0], 1 / tensors[1], valid)
        result.append((*tensors, valid, scale.item(), shift.item()))
    return result


def stability(frames: Video) -> dict:
    steady = Stability()
    for frame in frames:
        steady.update(*frame)
    return steady.compute()


def reference_stability(frames: Video) -> dict[str, float | int]:
    flicker, sensor, both, still = [], [], 0, 0
    for (d0, g0, v0, scale, shift), (d1, g1, v1, _, _) in pairwise(frames):
        farthest = g0[v0].double().max().item()
        for i in np.ndindex(*g0.shape):
            if not (v0[i] and v1[i]):
                continue
            both += 1
            before, after = g0[i].item(), g1[i].item()
            if abs(after - before) < 0.01 * before:
                still += 1
                z0, z1 = (min(1 / max(scale * d[i].item() + shift, 1e-9), farthest) for d in (d0, d1))
                flicker.append(abs(np.log(z1 / z0)))
                sensor.append(abs(np.log(after / before)))
    scales, shifts = np.array([frame[3:] for frame in frames]).T
    return {
        "scale_drift": np.std(scales) / np.mean(scales),
        "shift_drift": np.std(shifts),
        "flicker": np.mean(flicker),
        "sensor_flicker": np.mean(sensor),
        "still_share": still / both,
        "frames": len(frames),
    }


@pytest.mark.parametrize("seed", range(3))
def test_stability_is_its_definition(seed: int) -> None:
    frames = video(seed=seed)
    result = stability(frames)
    assert_same(result, reference_stability(frames), rel=1e-6)
    assert 0.3 < result["still_share"] < 0.7
    assert result["flicker"] > result["sensor_flicker"] > 0


def test_a_still_scene_predicted_alike_does_not_flicker() -> None:
    frame = video(1)[0]
    result = stability([frame] * 4)
    assert result == {
        "scale_drift": 0,
        "shift_drift": 0,
        "flicker": 0,
        "sensor_flicker": 0,
        "still_share": 1,
        "frames": 4,
    }


def test_a_prediction_that_changes_its_scale_flickers_though_each_frame_alone_is_aligned() -> None:
    inverse, depth, valid, scale, _ = video(1)[0]
    frames = [(inverse * factor, depth, valid, scale / factor, 0.0) for factor in (1.0, 1.1, 1.0)]
    result = stability(frames)
    # Both ways ln 1.1; a little less where the farthest depth is the limit.
    assert 0.8 * np.log(1.1) < result["flicker"] <= np.log(1.1)
    assert result["sensor_flicker"] == 0
    assert result["scale_drift"] == pytest.approx(np.std([1.1, 1, 1.1]) / np.mean([1.1, 1, 1.1]))


@pytest.mark.parametrize(
    ("change", "unchanged"),
    [
        (lambda d, g, v, scale, shift: (d, 2 * g, v, scale / 2, shift / 2), set()),
        (lambda d, g, v, scale, shift: (50 * d - 7, g, v, scale / 50, shift + 7 * scale / 50), {"shift_drift"}),
    ],
)
def test_neither_the_networks_nor_the_scenes_units_matter(change: Callable[..., tuple], unchanged: set[str]) -> None:
    frames = [(d.double(), g.double(), *rest) for d, g, *rest in video()]
    before, after = stability(frames), stability([change(*frame) for frame in frames])
    same = {"scale_drift", "flicker", "sensor_flicker", "still_share", "frames"}
    assert_same(after, {key: before[key] for key in same})
    if "shift_drift" not in unchanged:
        assert after["shift_drift"] == pytest.approx(before["shift_drift"] / 2)


def test_what_is_not_known_is_none() -> None:
    unknown = dict.fromkeys(("scale_drift", "shift_drift", "flicker", "sensor_flicker", "still_share"))
    assert stability([]) == unknown | {"frames": 0}
    assert stability(video(1)) == unknown | {"frames": 1}
    moving = stability(video(3, moving=1.0))
    assert moving["scale_drift"] is not None
    inverse, depth, valid, scale, shift = video(1)[0]
    changed = stability([(inverse, depth, valid, scale, shift), (inverse, 2 * depth, valid, scale, shift)])
    assert (changed["flicker"], changed["sensor_flicker"], changed["still_share"]) == (None, None, 0)


def test_a_frame_without_depth_is_left_out_and_nothing_is_compared_across_it() -> None:
    first, second, third = video(3)
    blind = (first[0], first[1], torch.zeros_like(first[2]), 0.0, 0.0)
    result = stability([first, blind, second, third])
    assert result["frames"] == 3
    assert result["scale_drift"] == pytest.approx(stability([first, second, third])["scale_drift"])
    assert result["flicker"] == stability([second, third])["flicker"]


def test_a_source_may_use_its_frames_memory_again() -> None:
    frames = video(3)
    expected = stability(frames)
    steady, memory = Stability(), [tensor.clone() for tensor in frames[0][:3]]
    for *tensors, scale, shift in frames:
        for place, tensor in zip(memory, tensors, strict=True):
            place.copy_(tensor)
        steady.update(memory[0], memory[1], memory[2], scale, shift)
    assert steady.compute() == expected
