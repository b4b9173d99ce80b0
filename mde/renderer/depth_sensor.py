"""Models of depth sensors: what a camera would have measured where the true depth is known."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mde.geometry import normals, unproject

L515_UNIT = 0.00025  # metres in one count
L515_RANGE = (0.25, 9.0)
LIDAR_RANGE = 80.0
LIDAR_BEAMS = 64
LIDAR_ELEVATION = (math.radians(-24.8), math.radians(2.0))
LIDAR_SHARE = 0.048  # of all pixels, at most
LIDAR_STEP = math.radians(0.16)  # azimuth between two firings


def l515(depth: Tensor, image: Tensor, intrinsics: Tensor, generator: torch.Generator) -> Tensor:
    """What a RealSense L515 reports. depth (1, H, W) metres, image uint8 (3, H, W) -> (1, H, W), 0 where dropped.

    The noise grows with the square of the distance (about 2.5 mm at 1 m, 15 mm at 9 m) and with weak returns. Returns
    are lost outside 0.25-9 m, on dark or grazing surfaces far away, and at random; at depth edges some pixels mix both
    sides. Values are whole counts of 0.25 mm. Our own plain model: no part of it was fitted to a device.
    """
    shape = depth.shape
    known = torch.isfinite(depth) & (depth > 0)
    clean = torch.where(known, depth, 0.0)
    noise, mix, drop = (torch.randn(shape, generator=generator), *torch.rand(2, *shape, generator=generator))
    edge, far_side = depth_edges(clean)
    tail = edge & (mix < 0.35)
    measured = torch.where(tail, clean + (far_side - clean) * mix / 0.35, clean)
    cosine = _incidence(clean, intrinsics)
    brightness = image.float().mean(0, keepdim=True) / 255
    signal = (0.05 + brightness) * (0.1 + cosine) / (0.3 + clean / L515_RANGE[1]) ** 2
    sigma = (0.0022 + 0.00015 * clean**2) * (1 + 0.1 / signal.clamp_min(0.05))
    measured = measured + noise * sigma
    lost = drop < torch.exp(-signal * 9.0)
    lost |= drop < 0.004
    lost |= edge & (drop < 0.3)
    low, high = L515_RANGE
    valid = known & ~lost & (measured >= low) & (measured <= high)
    return torch.where(valid, torch.round(measured / L515_UNIT) * L515_UNIT, 0.0)


def depth_edges(depth: Tensor) -> tuple[Tensor, Tensor]:
    """True where a neighbour differs by more than 5 %, and the deepest neighbour. Zeros (unknown) are no edge."""
    deepest = F.max_pool2d(depth, 3, 1, 1)
    known = torch.where(depth > 0, depth, torch.inf)
    nearest = -F.max_pool2d(-known, 3, 1, 1)
    return (deepest > 1.05 * nearest) & (depth > 0), deepest


def _incidence(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Cosine between the ray and the surface normal taken from neighbouring depths, (1, H, W)."""
    rays = F.normalize(unproject(torch.ones_like(depth)[None], intrinsics[None]), dim=1)
    return (normals(depth[None], intrinsics[None]) * rays).sum(1).abs()


def lidar(depth: Tensor, intrinsics: Tensor, generator: torch.Generator) -> Tensor:
    """Depth under the 64 scan lines of a Velodyne HDL-64 beside the camera. (1, H, W) metres -> (1, H, W), 0 elsewhere.

    A pixel is kept where a beam of the level scanner passes through it: elevations -24.8 to 2 degrees, azimuth every
    0.16 degrees. That is 4 to 5 % of a KITTI frame; of coarser frames, whose pixels several beams share, a random part
    of the same share is kept. Range 80 m, noise 2 cm, 2 % of the returns lost.
    """
    height, width = depth.shape[1:]
    jitter = float(torch.rand((), generator=generator))
    noise, drop = torch.randn(depth.shape, generator=generator), torch.rand(depth.shape, generator=generator)
    fx, fy, cx, cy = (float(intrinsics[k]) for k in ((0, 0), (1, 1), (0, 2), (1, 2)))
    elevation = torch.linspace(*LIDAR_ELEVATION, LIDAR_BEAMS)
    left, right = math.atan((-0.5 - cx) / fx), math.atan((width - 0.5 - cx) / fx)
    azimuth = torch.arange(left + jitter * LIDAR_STEP, right, LIDAR_STEP)
    column = cx + fx * torch.tan(azimuth)[None, :]
    row = cy - fy * torch.tan(elevation)[:, None] / torch.cos(azimuth)[None, :]
    column, row = torch.broadcast_tensors(column.round().long(), row.round().long())
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = torch.zeros(height, width, dtype=torch.bool)
    hit[row[inside], column[inside]] = True
    kept = min(0.98, LIDAR_SHARE / max(float(hit.float().mean()), 1e-9))
    measured = depth + 0.02 * noise
    valid = hit & torch.isfinite(depth) & (depth > 0) & (measured > 0) & (measured <= LIDAR_RANGE) & (drop < kept)
    return torch.where(valid, measured, 0.0)
