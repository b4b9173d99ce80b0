"""Pinhole geometry against written-out formulas, image maps against real resampling, crops against published bounds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mde.errors import MdeError
from mde.geometry import CROPS, normals, project, resize_homography, transform_intrinsics, unproject

INTRINSICS = torch.tensor([[[50.0, 0, 11.3], [0, 60, 7.9], [0, 0, 1]], [[35.0, 0, 9.0], [0, 35, 8.0], [0, 0, 1]]])


def random_depth(height: int = 17, width: int = 23) -> Tensor:
    return 0.5 + 5 * torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))


def test_unprojection_is_the_pinhole_formula_with_pixel_centres_at_whole_numbers() -> None:
    depth = random_depth()
    points = unproject(depth, INTRINSICS)
    for n, (v, u) in ((0, (0, 0)), (0, (16, 22)), (1, (8, 9)), (1, (5, 20))):
        z = depth[n, 0, v, u].item()
        (fx, _, cx), (_, fy, cy), _ = INTRINSICS[n].tolist()
        assert points[n, :, v, u].tolist() == pytest.approx([(u - cx) / fx * z, (v - cy) / fy * z, z], abs=1e-5)


def test_projection_undoes_unprojection() -> None:
    pixels = project(unproject(random_depth(), INTRINSICS), INTRINSICS)
    rows, columns = torch.meshgrid(torch.arange(17.0), torch.arange(23.0), indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([columns, rows]).expand(2, 2, 17, 23), atol=1e-4, rtol=0)


@pytest.mark.parametrize("facing", [(0.0, 0.0, -1.0), (0.0, -1.0, -0.3), (0.5, -0.2, -0.8), (-0.6, 0.1, -1.0)])
def test_normals_of_a_plane_are_its_normal_everywhere_and_face_the_camera(facing: tuple[float, ...]) -> None:
    normal = F.normalize(torch.tensor(facing), dim=0)
    rays = unproject(torch.ones(2, 1, 17, 23), INTRINSICS)
    depth = -2.0 / torch.einsum("c,nchw->nhw", normal, rays)[:, None]  # the plane n . X = -2
    assert (depth > 0).all()
    torch.testing.assert_close(
        normals(depth, INTRINSICS), normal.view(1, 3, 1, 1).expand(2, 3, 17, 23), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("to_size", [(34, 46), (32, 64), (9, 11), (17, 23)])
def test_the_resize_map_is_where_interpolation_puts_a_pixel(to_size: tuple[int, int]) -> None:
    # Resize an image that holds its own column and row: the value found at a pixel is where it came from.
    rows, columns = torch.meshgrid(torch.arange(17.0), torch.arange(23.0), indexing="ij")
    resized = F.interpolate(torch.stack([columns, rows])[None], to_size, mode="bilinear", align_corners=False)[0]
    back = torch.linalg.inv(resize_homography((17, 23), to_size))
    for v, u in ((to_size[0] // 2, to_size[1] // 2), (2, 3), (to_size[0] - 3, to_size[1] - 2)):
        assert resized[:, v, u].tolist() == pytest.approx((back @ torch.tensor([u, v, 1.0]))[:2].tolist(), abs=1e-4)


def test_the_resize_map_keeps_the_outer_edges() -> None:
    corners = torch.tensor([[-0.5, -0.5, 1], [22.5, 16.5, 1]]).T
    moved = resize_homography((17, 23), (256, 384)) @ corners
    torch.testing.assert_close(moved, torch.tensor([[-0.5, -0.5, 1], [383.5, 255.5, 1]]).T)


@pytest.mark.parametrize(
    "homography",
    [[[1, 0, -5], [0, 1, -3], [0, 0, 1]], [[2, 0, 0.5], [0, 1.5, 0.25], [0, 0, 1]]],
    ids=["crop", "resize"],
)
def test_transformed_intrinsics_project_points_to_the_moved_pixels(homography: list) -> None:
    H = torch.tensor(homography, dtype=torch.float32)
    points = unproject(random_depth(), INTRINSICS)
    before = project(points, INTRINSICS)
    expected = torch.einsum("ij,njhw->nihw", H, torch.cat([before, torch.ones_like(before[:, :1])], dim=1))[:, :2]
    torch.testing.assert_close(project(points, transform_intrinsics(INTRINSICS, H)), expected, atol=1e-3, rtol=0)


def test_a_mirrored_image_is_the_mirrored_scene_seen_with_positive_focal_lengths() -> None:
    flip = torch.tensor([[-1.0, 0, 22], [0, 1, 0], [0, 0, 1]])
    mirrored = transform_intrinsics(INTRINSICS, flip)
    assert (mirrored.diagonal(dim1=-2, dim2=-1) > 0).all()
    depth = random_depth()
    scene = unproject(depth, INTRINSICS) * torch.tensor([-1.0, 1, 1]).view(1, 3, 1, 1)
    torch.testing.assert_close(unproject(depth.flip(3), mirrored), scene.flip(3))
    torch.testing.assert_close(transform_intrinsics(mirrored, flip), INTRINSICS)


def test_a_resized_image_has_the_points_of_the_original() -> None:
    # The same wall seen at twice the resolution: points between four pixels of the large image are those of the small.
    large = transform_intrinsics(INTRINSICS, resize_homography((17, 23), (34, 46)))
    points = unproject(torch.full((2, 1, 34, 46), 3.0), large)
    torch.testing.assert_close(F.avg_pool2d(points, 2), unproject(torch.full((2, 1, 17, 23), 3.0), INTRINSICS))


def test_maps_that_turn_or_shear_are_refused() -> None:
    for homography in ([[0.0, -1, 5], [1, 0, 0], [0, 0, 1]], [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]):
        with pytest.raises(ValueError, match="turns"):
            transform_intrinsics(INTRINSICS, torch.tensor(homography))


@pytest.mark.parametrize(
    ("name", "size", "rows", "columns"),
    [
        ("none", (375, 1242), (0, 375), (0, 1242)),
        ("garg", (375, 1242), (153, 371), (44, 1197)),
        ("eigen_kitti", (375, 1242), (124, 342), (44, 1197)),
        ("benchmark", (375, 1242), (23, 375), (13, 1229)),
        ("benchmark", (370, 1226), (18, 370), (5, 1221)),
        ("benchmark", (352, 1216), (0, 352), (0, 1216)),
        ("eigen_nyu", (480, 640), (45, 471), (41, 601)),
        ("garg", (480, 640), (195, 476), (23, 616)),
    ],
)
def test_crops_have_their_published_bounds(name: str, size, rows, columns) -> None:
    kept = np.zeros(size, dtype=bool)
    kept[CROPS[name](*size)] = True
    assert (np.flatnonzero(kept.any(axis=1))[[0, -1]] + [0, 1]).tolist() == list(rows)
    assert (np.flatnonzero(kept.any(axis=0))[[0, -1]] + [0, 1]).tolist() == list(columns)
    assert kept.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])


@pytest.mark.parametrize(
    ("name", "size"), [("benchmark", (351, 1242)), ("benchmark", (375, 1215)), ("eigen_nyu", (256, 320))]
)
def test_a_fixed_crop_refuses_frames_it_does_not_fit(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(MdeError, match=f"crop={name}.*use crop="):
        CROPS[name](*size)
