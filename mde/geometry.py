"""Pinhole geometry on tensors, maps of the image plane, and the crops that published evaluations use.

Conventions: pixel centres at whole numbers, (0, 0) the top left one; camera axes x right, y down, z forward; depth is
z, not range. Intrinsics are (N, 3, 3) in pixels of the image that the depth belongs to.
"""

from collections.abc import Callable

import torch
from kornia.geometry.camera import project_points
from kornia.geometry.depth import depth_to_3d, depth_to_normals
from torch import Tensor

from mde.errors import MdeError

Crop = tuple[slice, slice]  # rows, columns


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points (N, 3, H, W) in the camera's frame from depth (N, 1, H, W); the unit is the depth's."""
    return depth_to_3d(depth, intrinsics)


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (N, 2, H, W), as (column, row), of points (N, 3, H, W) in the camera's frame, z > 0."""
    return project_points(points.permute(0, 2, 3, 1), intrinsics[:, None, None]).permute(0, 3, 1, 2)


def normals(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Unit surface normals (N, 3, H, W) that face the camera, from depth (N, 1, H, W); a wall ahead has (0, 0, -1).

    Each comes from the pixel's 3 x 3 neighbourhood, so it means nothing beside a hole or a depth edge. H, W at least 2.
    """
    return -depth_to_normals(depth, intrinsics)  # kornia's point away from the camera


def resize_homography(from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """The map (3, 3) of pixel coordinates (column, row, 1) when an image (height, width) is resized.

    Half-pixel convention (align_corners=False): outer edges stay edges, so x' = (x + 1/2) w' / w - 1/2.
    """
    (height, width), (to_height, to_width) = from_size, to_size
    x, y = to_width / width, to_height / height
    return torch.tensor([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def transform_intrinsics(intrinsics: Tensor, homography: Tensor) -> Tensor:
    """Intrinsics (..., 3, 3) after the image plane was cropped, resized or mirrored by `homography` (..., 3, 3).

    fx and fy stay positive: a mirrored image is taken as an ordinary picture of the mirrored scene, not as a picture
    by a camera with a negative focal length. Raises ValueError for a map that turns or shears.
    """
    homography = homography.to(intrinsics)
    scale = homography.diagonal(dim1=-2, dim2=-1)
    off_axis = homography[..., (0, 1, 2, 2), (1, 0, 0, 1)]
    if off_axis.any() or (scale == 0).any():
        raise ValueError("transform_intrinsics takes crops, resizes and flips; this map turns, shears or collapses")
    return homography @ intrinsics @ torch.diag_embed(scale.sign())


def garg_crop(height: int, width: int) -> Crop:
    """KITTI, Garg et al. (ECCV 2016): fractions of the image, rounded down."""
    return _fraction_crop(height, width, 0.40810811, 0.99189189)


def eigen_kitti_crop(height: int, width: int) -> Crop:
    """KITTI, Eigen et al. (NeurIPS 2014), as fractions of the image, rounded down."""
    return _fraction_crop(height, width, 0.3324324, 0.91351351)


def benchmark_crop(height: int, width: int) -> Crop:
    """KITTI's own depth benchmark: 352 x 1216 from the bottom centre. Raises MdeError for a smaller frame."""
    if height < 352 or width < 1216:
        raise MdeError(f"crop=benchmark takes 352 x 1216 pixels, but a frame has {height} x {width}; use crop=garg")
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def eigen_nyu_crop(height: int, width: int) -> Crop:
    """NYU, Eigen et al. (NeurIPS 2014): rows 45:471, columns 41:601. Raises MdeError unless the frame is 480 x 640."""
    if (height, width) != (480, 640):
        raise MdeError(
            f"crop=eigen_nyu is defined on 480 x 640 pixels, but a frame has {height} x {width}; "
            "use crop=none where frames are resized or cropped already"
        )
    return slice(45, 471), slice(41, 601)


def no_crop(height: int, width: int) -> Crop:
    return slice(0, height), slice(0, width)


def _fraction_crop(height: int, width: int, top: float, bottom: float) -> Crop:
    return slice(int(top * height), int(bottom * height)), slice(int(0.03594771 * width), int(0.96405229 * width))


CROPS: dict[str, Callable[[int, int], Crop]] = {
    "none": no_crop,
    "garg": garg_crop,
    "eigen_kitti": eigen_kitti_crop,
    "benchmark": benchmark_crop,
    "eigen_nyu": eigen_nyu_crop,
}
