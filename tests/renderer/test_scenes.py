"""The embedded dataset: exact depth against an independent ray caster, determinism, and the sensor models."""

import math
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.data.synthetic import SyntheticFrames, synthetic_splits
from mde.errors import MdeError
from mde.metrics import truth_mask
from mde.renderer.depth_sensor import L515_UNIT, l515, lidar
from mde.renderer.render import cast, render
from mde.renderer.scene import BOX, CYLINDER, ELLIPSOID, Builder, Camera, Primitives, lacquer, look

SIZE = (48, 64)


def _solve_quadratic(a: float, b: float, c: float) -> list[float]:
    if abs(a) < 1e-14:
        return [-c / b] if abs(b) > 1e-14 else []
    inside = b * b - 4 * a * c
    return [] if inside < 0 else [(-b - math.sqrt(inside)) / (2 * a), (-b + math.sqrt(inside)) / (2 * a)]


def _candidates(kind: int, taper: float, o: np.ndarray, d: np.ndarray) -> list[float]:
    """All ray parameters at which o + t d meets the surface of the unit solid."""
    found = []
    planes = range(3) if kind == BOX else [2] if kind == CYLINDER else []
    for k in planes:
        if d[k] != 0:
            for side in (-1.0, 1.0):
                t = (side - o[k]) / d[k]
                q = o + t * d
                if kind == BOX and all(abs(q[j]) <= 1 for j in range(3) if j != k):
                    found.append(t)
                if kind == CYLINDER and q[0] ** 2 + q[1] ** 2 <= (1 + taper * side) ** 2:
                    found.append(t)
    if kind == ELLIPSOID:
        found += _solve_quadratic(d @ d, 2 * o @ d, o @ o - 1)
    if kind == CYLINDER:
        r, s = 1 + taper * o[2], taper * d[2]
        roots = _solve_quadratic(
            d[0] ** 2 + d[1] ** 2 - s * s, 2 * (o[0] * d[0] + o[1] * d[1] - r * s), o[0] ** 2 + o[1] ** 2 - r * r
        )
        found += [t for t in roots if abs(o[2] + t * d[2]) <= 1]
    return found


def reference_depth(primitives: Primitives, camera: Camera) -> np.ndarray:
    """One pixel and one primitive at a time, in float64: z of the nearest hit, inf where there is none."""
    height, width = camera.size
    depth = np.full((height, width), np.inf)
    rows = camera.rotation.double().numpy()
    eye = camera.position.double().numpy()
    solids = [
        (int(kind), float(taper), rotation.double().numpy().T / half.double().numpy()[:, None], centre.double().numpy())
        for kind, taper, rotation, half, centre in zip(
            primitives.kind, primitives.taper, primitives.rotation, primitives.half, primitives.centre, strict=True
        )
    ]
    for v in range(height):
        for u in range(width):
            ray = rows.T @ np.array([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0])
            for kind, taper, inverse, centre in solids:
                hits = _candidates(kind, taper, inverse @ (eye - centre), inverse @ ray)
                depth[v, u] = min([depth[v, u], *(t for t in hits if t > 0)])
    return depth


def _small_scene(seed: int) -> tuple[Primitives, Camera]:
    rng = Random(seed)
    b = Builder(rng)
    b.box(-4, 4, -4, 4, -0.1, 0, lacquer(rng))
    for _ in range(9):
        kind = rng.choice((BOX, ELLIPSOID, CYLINDER))
        centre = (rng.uniform(-1.5, 1.5), rng.uniform(1.5, 4), rng.uniform(0, 2))
        half = (rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5))
        yaw, tilt, roll = (rng.uniform(-3, 3) for _ in range(3))
        taper = rng.choice((0.0, rng.uniform(-0.6, 0.6)))
        b.add(kind, centre, half, lacquer(rng), yaw, tilt, roll, taper)
    eye = (rng.uniform(-0.5, 0.5), 0.0, rng.uniform(0.5, 1.8))
    camera = look(eye, rng.uniform(-0.2, 0.2), rng.uniform(-0.4, 0.1), rng.uniform(-0.2, 0.2), (37, 45), 1.2, 4 / 3)
    return b.finish(eye, 0.1)[0], camera


@pytest.mark.parametrize("seed", range(4))
def test_depth_equals_that_of_a_plain_ray_caster(seed: int) -> None:
    primitives, camera = _small_scene(seed)
    expected = reference_depth(primitives, camera)
    depth = (1 / cast(primitives, camera).inverse_depth).numpy().astype(np.float64)
    both = np.isfinite(expected) & np.isfinite(depth)
    assert np.mean(np.isfinite(expected) == np.isfinite(depth)) > 0.999
    error = np.abs(depth[both] / expected[both] - 1)
    assert np.mean(error < 1e-4) > 0.998  # a ray along a silhouette may go either way in float32
    assert np.median(error) < 1e-6


def test_straight_down_into_a_standing_cylinder_meets_its_top() -> None:
    b = Builder(Random(0))
    b.post(0, 0, 0, 1, 0.5, lacquer(b.rng))
    camera = look((0.1, 0.0, 3.0), 0.0, -math.pi / 2, 0.0, (9, 9), 0.1, 1.0)
    primitives, _ = b.finish((0.1, 0.0, 3.0), 0.1)
    assert torch.allclose(cast(primitives, camera).inverse_depth, torch.tensor(0.5), atol=1e-6)


def test_points_on_the_floor_project_back_to_height_zero() -> None:
    frames = SyntheticFrames(6, SIZE, seed=3, world="rooms")
    seen = 0
    for index in range(6):
        scene, sample = frames.scene(index), frames[index]
        floor = cast(scene.primitives, scene.camera).primitive == 0  # the floor is built first
        assert sample.intrinsics is not None
        v, u = floor.nonzero(as_tuple=True)
        pixels = torch.stack([u, v, torch.ones_like(u)]).float()
        points = torch.linalg.inv(sample.intrinsics) @ pixels * sample.depth[0][floor]
        height = (scene.camera.rotation.T @ points)[2] + scene.camera.position[2]
        assert torch.all(height.abs() < 1e-3)
        seen += int(floor.sum())
    assert seen > 500


def test_a_frame_is_the_same_whenever_and_wherever_it_is_made() -> None:
    first = SyntheticFrames(10, SIZE, seed=1)[7]
    threads = torch.get_num_threads()
    torch.manual_seed(123)
    torch.set_num_threads(1)
    again = SyntheticFrames(8, SIZE, seed=1)
    _ = again[2]
    second = again[7]
    torch.set_num_threads(threads)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.depth, second.depth)
    other = SyntheticFrames(10, SIZE, seed=2)[7]
    assert not torch.equal(first.image, other.image)


def test_splits_share_no_scene_and_evaluate_on_exact_depth() -> None:
    splits = synthetic_splits(4, SIZE, validation=4, test=4, sensor="l515", world="rooms")
    assert splits.test is not None
    parts = [[frames[i] for i in range(4)] for frames in (splits.train, splits.validation, splits.test)]
    pictures = [sample.image for part in parts for sample in part]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert (a.float() - b.float()).abs().mean() > 5
    assert not all(bool(sample.mask.all()) for sample in parts[0])
    assert all(bool(sample.mask.all()) for part in parts[1:] for sample in part)


@pytest.mark.parametrize(("world", "sky"), [("rooms", False), ("streets", True)])
def test_only_streets_have_a_sky_and_it_is_known_and_infinite(world: str, sky: bool) -> None:
    frames = SyntheticFrames(8, SIZE, seed=5, world=world)
    samples = [frames[i] for i in range(8)]
    assert all(bool(sample.mask.all()) for sample in samples)
    assert any(bool(torch.isinf(sample.depth).any()) for sample in samples) == sky
    for sample in samples:
        finite = sample.depth[torch.isfinite(sample.depth)]
        assert float(finite.min()) > 0.1
        assert float(finite.max()) <= frames.cap
        assert truth_mask(sample.depth, sample.mask, frames.cap).float().mean() > 0.4


def test_no_ray_leaves_a_room() -> None:
    frames = SyntheticFrames(60, (24, 32), seed=8, world="rooms")
    for index in range(60):
        scene = frames.scene(index)
        assert float(cast(scene.primitives, scene.camera).inverse_depth.min()) > 1 / 20


def test_frames_have_the_promised_types_and_varied_content() -> None:
    frames = SyntheticFrames(12, SIZE, seed=9)
    spreads, objects = [], []
    for index in range(12):
        sample = frames[index]
        assert sample.image.shape == (3, *SIZE)
        assert sample.image.dtype == torch.uint8
        assert sample.depth.shape == sample.mask.shape == (1, *SIZE)
        assert sample.depth.dtype == torch.float32
        assert sample.mask.dtype == torch.bool
        spreads.append(float(sample.image.float().std()))
        scene = frames.scene(index)
        objects.append(float((cast(scene.primitives, scene.camera).primitive > 5).float().mean()))
    assert min(spreads) > 8
    assert np.median(spreads) > 25
    assert 0.2 < np.mean(objects) < 0.95


def test_any_size_is_rendered_with_the_same_view() -> None:
    small = SyntheticFrames(1, (40, 40), seed=4, world="rooms")[0]
    large = SyntheticFrames(1, (200, 200), seed=4, world="rooms")[0]
    # The centre of small pixel k is the centre of large pixel 5 k + 2.
    ratio = large.depth[:, 2::5, 2::5] / small.depth
    assert float(((ratio - 1).abs() < 1e-3).float().mean()) > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_depth() -> None:
    scene = SyntheticFrames(1, (64, 64), seed=6).scene(0)
    here, there = render(scene)[1], render(scene.to(torch.device("cuda")))[1]
    close = torch.isclose(here.inverse_depth, there.inverse_depth.cpu(), rtol=1e-4)
    assert close.float().mean() > 0.998


@pytest.mark.parametrize("options", [{"sensor": "kinect"}, {"world": "moon"}])
def test_an_unknown_name_is_answered_with_the_choices(options: dict[str, str]) -> None:
    with pytest.raises(MdeError, match=r"choose one of"):
        SyntheticFrames(1, **options)  # type: ignore[arg-type]


def _flat(distance: float, size: tuple[int, int] = (200, 200), grey: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    intrinsics = torch.tensor([[200.0, 0, (size[1] - 1) / 2], [0, 200.0, (size[0] - 1) / 2], [0, 0, 1]])
    return torch.full((1, *size), distance), torch.full((3, *size), grey, dtype=torch.uint8), intrinsics


@pytest.mark.parametrize(("distance", "low", "high"), [(1.0, 0.001, 0.004), (5.0, 0.003, 0.012)])
def test_l515_noise_is_unbiased_millimetres_and_in_whole_counts(distance: float, low: float, high: float) -> None:
    depth, image, intrinsics = _flat(distance)
    measured = l515(depth, image, intrinsics, torch.Generator().manual_seed(0))
    valid = measured > 0
    assert valid.float().mean() > 0.85
    assert low < float((measured[valid] - distance).std()) < high
    assert abs(float((measured[valid] - distance).mean())) < 5e-4
    counts = measured.double() / L515_UNIT
    assert torch.allclose(counts, counts.round(), atol=2e-2)


@pytest.mark.parametrize("distance", [0.1, 9.5, math.inf, 0.0])
def test_l515_measures_nothing_out_of_range(distance: float) -> None:
    depth, image, intrinsics = _flat(distance)
    assert not l515(depth, image, intrinsics, torch.Generator().manual_seed(0)).any()


def test_l515_loses_dark_and_far_surfaces_first_and_has_tails_at_edges() -> None:
    def share(distance: float, grey: int) -> float:
        measured = l515(*_flat(distance, grey=grey), torch.Generator().manual_seed(0))
        return float((measured > 0).float().mean())

    assert share(7.0, 5) < 0.7 * share(7.0, 200)
    assert share(7.0, 5) < share(1.0, 5)
    depth, image, intrinsics = _flat(1.0)
    depth[:, :, 100:] = 2.0
    measured = l515(depth, image, intrinsics, torch.Generator().manual_seed(0))
    between = (measured > 1.1) & (measured < 1.9)
    assert between[:, :, 99].any()
    assert not between[:, :, :98].any()


def test_lidar_keeps_four_to_five_percent_on_scan_lines_within_80_metres() -> None:
    height, width = 375, 1242  # KITTI's left colour camera
    intrinsics = torch.tensor([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1]])
    depth = torch.full((1, height, width), 20.0)
    measured = lidar(depth, intrinsics, torch.Generator().manual_seed(0))
    valid = measured > 0
    assert 0.035 < float(valid.float().mean()) < 0.055
    assert 0.01 < float((measured[valid] - 20).std()) < 0.03
    assert len(valid[0, :, width // 2 - 40 : width // 2 + 40].any(1).nonzero()) <= 64
    assert not lidar(torch.full_like(depth, 85.0), intrinsics, torch.Generator()).any()


def test_sensor_frames_mark_what_was_not_measured() -> None:
    for sensor, low, high in (("l515", 0.3, 0.999), ("lidar", 0.02, 0.055)):
        sample = SyntheticFrames(1, (96, 128), seed=2, sensor=sensor, world="rooms")[0]
        assert low < float(sample.mask.float().mean()) < high
        assert torch.equal(sample.mask, sample.depth > 0)
    assert SyntheticFrames(1, SIZE, sensor="l515")[0].depth_unit == L515_UNIT
