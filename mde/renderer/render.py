"""Exact ray casting of convex primitives, and shading of what is seen.

With a pixel's ray r = (x, y, 1) in camera coordinates and w = 1 / z the inverse depth along it, a half-space n . X <= e
holds the ray where n . r <= e w: an affine function of the pixel bounds w from above when the camera is outside the
half-space and from below when it is inside. A quadric bounds w by the roots of a quadratic whose coefficients are
polynomials in the pixel. A convex primitive is hit where the least upper bound is at least the greatest lower bound,
and is seen where its w is the largest. Nothing but additions, minima and one square root is done per pixel and
primitive.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mde.renderer import texture
from mde.renderer.scene import BOX, CYLINDER, Camera, Primitives, Scene

FAR = 1e30
TILE = 32
CHUNK = 1 << 16  # pixels x primitives handled at once: small enough to stay in the cache


@dataclass
class Hits:
    """inverse_depth float32 (H, W), 1/m, 0 where nothing is hit; primitive int32 (H, W), meaningless there."""

    inverse_depth: Tensor
    primitive: Tensor


def cast(primitives: Primitives, camera: Camera) -> Hits:
    """What the camera sees of the primitives at each pixel centre. No primitive may contain the camera."""
    matrix, origin = _local_rays(primitives, camera)
    grid = _Tiles(camera, primitives.centre.device)
    touched = grid.touched(primitives, camera)
    boxes = primitives.kind == BOX
    depth, index = grid.buffers()
    for chosen, coefficients, kernel in (
        (boxes, _box_coefficients, _box_kernel),
        (~boxes, _quadric_coefficients, _quadric_kernel),
    ):
        numbers = chosen.nonzero()[:, 0]
        if len(numbers):
            rows = coefficients(matrix[numbers], origin[numbers], primitives, numbers)
            grid.draw(rows, touched[numbers], numbers, kernel, depth, index)
    return Hits(grid.image(depth).abs_(), grid.image(index))  # abs: a miss may be -0, and 1 / -0 is no sky


def _local_rays(primitives: Primitives, camera: Camera) -> tuple[Tensor, Tensor]:
    """Camera rays and camera centre in each primitive's unit frame: (P, 3, 3) and (P, 3), float64 for accuracy."""
    inverse = primitives.rotation.double().mT / primitives.half.double()[:, :, None]
    matrix = inverse @ camera.rotation.double().T
    origin = (inverse @ (camera.position.double() - primitives.centre.double())[:, :, None])[:, :, 0]
    return matrix, origin


def _slab(matrix: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds on w of the slabs |x_k| <= 1: of near planes upper and lower, of far ones lower; each (P, 3, 3)."""
    sign = torch.where(origin < 0, -1.0, 1.0).to(origin.dtype)
    gap = 1 - origin.abs()
    gap = torch.where(gap.abs() < 1e-9, -1e-9, gap)
    near = matrix * (sign / gap)[..., None]
    far = -matrix * (sign / (1 + origin.abs()))[..., None]
    constant = torch.tensor([0.0, 0.0, FAR], dtype=matrix.dtype, device=matrix.device)
    outside = (gap < 0)[..., None]
    return torch.where(outside, near, constant), torch.where(outside, -constant, near), far


def _box_coefficients(matrix: Tensor, origin: Tensor, primitives: Primitives, numbers: Tensor) -> Tensor:
    """(P + 1, 9, 3) affine bounds: three upper, six lower; the last row is never hit."""
    rows = torch.cat(_slab(matrix, origin), 1)
    never = torch.zeros_like(rows[:1])
    never[:, :3, 2] = -FAR
    return torch.cat([rows, never]).float()


def _box_kernel(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    across, down = rows[..., 0:1] * x + rows[..., 2:3], rows[..., 1:2] * y
    across, down = across[..., None, :], down[..., :, None]
    bound = across[:, :, 0] + down[:, :, 0]
    for k in (1, 2):
        bound = torch.minimum(bound, across[:, :, k] + down[:, :, k], out=bound)
    lower = across[:, :, 3] + down[:, :, 3]
    for k in range(4, 9):
        lower = torch.maximum(lower, across[:, :, k] + down[:, :, k], out=lower)
    return bound.mul_(bound >= lower)


def _quadric_coefficients(matrix: Tensor, origin: Tensor, primitives: Primitives, numbers: Tensor) -> Tensor:
    """(P + 1, 8, 3): the discriminant's terms (two rows), root offset, slack, and the slab of the axis (three rows).

    The solid is x G x + 2 l . x <= 1 in its unit frame: a ball, or a cylinder of radius 1 + taper z between |z| <= 1.
    """
    taper = primitives.taper[numbers].double()
    round_ = primitives.kind[numbers] == CYLINDER
    metric = torch.ones_like(origin)
    metric[:, 2] = torch.where(round_, -(taper**2), 1.0)
    linear = torch.zeros_like(origin)
    linear[:, 2] = torch.where(round_, -taper, 0.0)
    pull = metric * origin + linear
    constant = ((metric * origin + 2 * linear) * origin).sum(1) - 1
    constant = torch.where(constant.abs() < 1e-9, 1e-9, constant)
    slope = (pull[:, None, :] @ matrix)[:, 0]
    form = slope[:, :, None] * slope[:, None, :] - constant[:, None, None] * (matrix.mT * metric[:, None, :]) @ matrix
    form = form / (constant**2)[:, None, None]
    square = torch.stack([form[:, 0, 0], 2 * form[:, 0, 1], form[:, 1, 1]], 1)
    affine = torch.stack([2 * form[:, 0, 2], 2 * form[:, 1, 2], form[:, 2, 2]], 1)
    root = -slope / constant[:, None]
    sign = torch.zeros_like(origin)
    # Root pair on the ray is root -+ sqrt(form). Inside an infinite cylinder only the lower bound remains.
    sign[:, 2] = torch.where(constant > 0, 0.0, FAR)
    upper, lower, far = (bound[:, 2] for bound in _slab(matrix, origin))
    free = torch.tensor([0.0, 0.0, FAR], dtype=origin.dtype, device=origin.device)
    ball = ~round_[:, None]
    planes = (torch.where(ball, free, upper), torch.where(ball, -free, lower), torch.where(ball, -free, far))
    rows = torch.stack([square, affine, root, sign, *planes], 1)
    never = torch.zeros_like(rows[:1])
    never[:, 1, 2] = -1.0
    return torch.cat([rows, never]).float()


def _quadric_kernel(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    def affine(k: int) -> Tensor:
        across, down = rows[:, :, k, 0:1] * x[:, 0] + rows[:, :, k, 2:3], rows[:, :, k, 1:2] * y[:, 0]
        return across[..., None, :] + down[..., :, None]

    square = rows[:, :, 0]
    discriminant = affine(1)
    discriminant += (square[..., 0:1] * x[:, 0] ** 2)[..., None, :]
    discriminant += (square[..., 2:3] * y[:, 0] ** 2)[..., :, None]
    discriminant += (square[..., 1:2] * x[:, 0])[..., None, :] * y[:, 0][..., :, None]
    miss = discriminant < 0
    spread = discriminant.clamp_min_(0).sqrt_()
    root = affine(2)
    upper = torch.minimum(root + spread + rows[:, :, 3, 2, None, None], affine(4))
    # For a camera inside (constant < 0) the roots swap: the positive one is root + spread, and it is the lower bound.
    inside = rows[:, :, 3, 2, None, None] > 0
    lower = torch.where(inside, root + spread, root - spread)
    lower = torch.maximum(torch.maximum(lower, affine(5)), affine(6))
    return upper.mul_((upper >= lower) & ~miss)


Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Tiles:
    """The image cut into square tiles, so that a primitive is only tested where it can be seen."""

    def __init__(self, camera: Camera, device: torch.device):
        self.height, self.width = camera.size
        self.rows, self.columns = -(-self.height // TILE), -(-self.width // TILE)
        self.x = (torch.arange(self.columns * TILE, device=device, dtype=torch.float32) - camera.cx) / camera.fx
        self.y = (torch.arange(self.rows * TILE, device=device, dtype=torch.float32) - camera.cy) / camera.fy

    def buffers(self) -> tuple[Tensor, Tensor]:
        shape = (self.rows * self.columns, TILE, TILE)
        return self.x.new_zeros(shape), torch.zeros(shape, dtype=torch.int32, device=self.x.device)

    def image(self, tiles: Tensor) -> Tensor:
        whole = tiles.view(self.rows, self.columns, TILE, TILE).transpose(1, 2)
        return whole.reshape(self.rows * TILE, self.columns * TILE)[: self.height, : self.width].contiguous()

    def touched(self, primitives: Primitives, camera: Camera) -> Tensor:
        """Bool (P, tiles): false where all corners of a bounding box lie outside one side of the tile's frustum."""
        device = primitives.centre.device
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], device=device)] * 3)
        wide = torch.ones_like(primitives.half)
        wide[:, :2] += primitives.taper.abs()[:, None]
        offsets = (corners * (wide * primitives.half)[:, None]) @ primitives.rotation.mT
        points = (offsets + (primitives.centre - camera.position)[:, None]) @ camera.rotation.T
        px, py, pz = points.unbind(-1)

        def band(p: Tensor, axis: Tensor) -> Tensor:
            first, last = axis[::TILE], axis[TILE - 1 :: TILE]
            above = (p[:, :, None] - first * pz[:, :, None]).amax(1) >= 0
            below = (p[:, :, None] - last * pz[:, :, None]).amin(1) <= 0
            return above & below

        ahead = (pz.amax(1) > 0)[:, None, None]
        return (band(py, self.y)[:, :, None] & band(px, self.x)[:, None, :] & ahead).flatten(1)

    def draw(
        self, rows: Tensor, touched: Tensor, numbers: Tensor, kernel: Kernel, depth: Tensor, index: Tensor
    ) -> None:
        """Goes through the primitives of all tiles, a few of each tile at a time, keeping the nearest."""
        counts = touched.sum(0)
        order = counts.argsort(descending=True, stable=True)
        listed = touched[:, order].T.int().argsort(dim=1, descending=True, stable=True)
        listed = torch.where(
            torch.arange(len(rows) - 1, device=rows.device) < counts[order][:, None], listed, len(rows) - 1
        )
        numbers = torch.cat([numbers, numbers[:1]]).int()
        x = self.x.view(1, self.columns, TILE).expand(self.rows, -1, -1).reshape(-1, 1, 1, TILE)[order]
        y = self.y.view(self.rows, 1, TILE).expand(-1, self.columns, -1).reshape(-1, 1, 1, TILE)[order]
        sorted_depth, sorted_index = depth[order], index[order]
        start, most = 0, counts[order].tolist()
        while start < most[0]:
            tiles = sum(count > start for count in most)
            stop = min(start + max(1, CHUNK // (tiles * TILE * TILE)), most[0])
            chosen = listed[:tiles, start:stop]
            found = kernel(rows[chosen], x[:tiles], y[:tiles])
            names = numbers[chosen][:, :, None, None]
            best, which = sorted_depth[:tiles], sorted_index[:tiles]
            for k in range(stop - start):
                torch.where(found[:, k] > best, names[:, k], which, out=which)
                torch.maximum(best, found[:, k], out=best)
            start = stop
        depth[order], index[order] = sorted_depth, sorted_index


def render(scene: Scene) -> tuple[Tensor, Hits]:
    """Linear radiance, float32 (3, H, W), not yet exposed, and what was hit."""
    hits = cast(scene.primitives, scene.camera)
    return _shade(scene, hits), hits


def _shade(scene: Scene, hits: Hits) -> Tensor:
    camera, device = scene.camera, hits.inverse_depth.device
    height, width = camera.size
    x = (torch.arange(width, device=device, dtype=torch.float32) - camera.cx) / camera.fx
    y = (torch.arange(height, device=device, dtype=torch.float32) - camera.cy) / camera.fy
    ray = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width, device=device)]
    )
    ray = (camera.rotation.T @ ray.flatten(1)).contiguous()  # world, z along the optical axis = 1
    w, index = hits.inverse_depth.flatten(), hits.primitive.flatten()
    z = 1 / w.clamp_min(1e-3)
    offset = ray * z
    albedo, normal, specular, emission = _surface(scene, index, offset, ray, z)
    point = offset + camera.position[:, None]
    colour = _light(scene, point, normal, ray, albedo, specular) + albedo * emission
    if scene.sky is not None:
        haze = torch.exp(-z / scene.sky.visibility)
        colour = torch.where(w > 0, torch.lerp(scene.sky.horizon[:, None], colour, haze), _sky(scene, ray))
    return colour.view(3, height, width)


def _surface(scene: Scene, index: Tensor, offset: Tensor, ray: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Albedo (3, N), unit normal in the world (3, N), specular (N,), emission (N,) of the hit surfaces."""
    shape, look = scene.primitives, scene.materials
    table = torch.cat(
        [
            shape.rotation.flatten(1),  # 0:9
            shape.centre - scene.camera.position,  # 9:12
            shape.half,  # 12:15
            look.uv_scale,  # 15:18
            look.uv_offset,  # 18:21
            look.colour_a,  # 21:24
            look.colour_b,  # 24:27
            look.specular[:, None],
            look.emission[:, None],
            shape.kind[:, None].float(),
            shape.taper[:, None],
            look.texture[:, None].float(),
        ],
        1,
    )
    p = table.T.contiguous().index_select(1, index)
    rotation = p[:9].view(3, 3, -1)
    away = offset - p[9:12]
    local = torch.stack([_dot(rotation[:, k], away) for k in range(3)])
    unit = local / p[12:15]
    kind, taper = p[29], p[30]
    onehot = torch.stack(_largest(unit)) * unit.sign()
    bend = torch.stack([torch.ones_like(taper), torch.ones_like(taper), -taper * taper]) * unit
    bend[2] -= taper
    capped = (unit[2].abs() > 0.9999)[None]
    side = torch.where(capped, torch.stack([torch.zeros_like(taper)] * 2 + [unit[2].sign()]), bend)
    curved = torch.where(kind == CYLINDER, side, unit) / p[12:15]
    normal_local = torch.where(kind == BOX, onehot, curved)
    normal_local = normal_local / _length(normal_local).clamp_min(1e-9)
    normal = torch.stack([_dot(rotation[k], normal_local) for k in range(3)])
    along_x, _, along_z = _largest(normal_local)
    uvw = local * p[15:18] + p[18:21]
    u = torch.where(along_x, uvw[1], uvw[0])
    v = -torch.where(along_z, uvw[1], uvw[2])
    facing = _dot(normal, ray).abs() / _length(ray)
    rate = p[15:18].abs().mean(0) * texture.SIDE / scene.camera.fy
    level = torch.log2((rate * z / facing.clamp_min(0.15)).clamp_min(1e-6)) - 0.3
    texel = texture.sample(p[31].long(), u, v, level)
    albedo = torch.lerp(p[21:24], p[24:27], texel)
    return albedo, normal, p[27], p[28]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Over the first of dimensions (3, N); much faster on a CPU than a reduction over the slow dimension."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _length(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _largest(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool (N,) each: which of the three components is the largest in size."""
    x, y, z = a.abs()
    first = (x >= y) & (x >= z)
    third = (z > y) & ~first
    return first, ~(first | third), third


def _power_32(a: Tensor) -> Tensor:
    for _ in range(5):
        a = a * a
    return a


def _light(scene: Scene, point: Tensor, normal: Tensor, ray: Tensor, albedo: Tensor, specular: Tensor) -> Tensor:
    """Ambient light from above and below, and point lights; the first light casts soft shadows."""
    lights = scene.lights
    blend = 0.5 + 0.5 * normal[2]
    total = albedo * torch.lerp(lights.ground[:, None], lights.sky[:, None], blend)
    sight = ray / _length(ray)
    lit = _shadow(scene, point, normal)
    total = total * (0.6 + 0.4 * lit)
    for k in range(len(lights.position)):
        toward = lights.position[k][:, None] - point
        squared = _dot(toward, toward)
        toward = toward * squared.rsqrt()
        cosine = _dot(toward, normal)
        fall = 1 / (1 + squared / lights.reach[k] ** 2)
        strength = (0.85 * cosine + 0.15).clamp_min(0) * fall
        mirror = toward - sight
        shine = (_dot(mirror, normal) / _length(mirror).clamp_min(1e-6)).clamp_min(0)
        gloss = specular * _power_32(shine) * fall
        if k == 0:
            strength, gloss = strength * lit, gloss * lit
        total = total + lights.colour[k][:, None] * (albedo * strength + gloss)
    return total


def _shadow(scene: Scene, point: Tensor, normal: Tensor) -> Tensor:
    """Share of the first light that arrives, (N,): depth compared with what the light sees."""
    view = scene.lights.view
    casting = scene.primitives.select(scene.materials.emission == 0)
    seen = cast(casting, view).inverse_depth
    height, width = view.size
    x, y, z = offset = view.rotation @ (point + 0.005 * scene.lights.scale * normal - view.position[:, None])
    z = z.clamp_min(1e-3)
    column, row = view.fx * x / z + view.cx, view.fy * y / z + view.cy
    within = (column > 1) & (column < width - 2) & (row > 1) & (row < height - 2)
    column, row = column.clamp(1, width - 2), row.clamp(1, height - 2)
    i, j = column.floor(), row.floor()
    right, down = column - i, row - j
    # The surface's own inverse depth is affine in the light's pixels: compared at each of them, it never shades itself.
    facing = view.rotation @ normal
    away = _dot(facing, offset).clamp_max(-1e-2)
    slope_x, slope_y = 1.01 * facing[0] / (away * view.fx), 1.01 * facing[1] / (away * view.fy)
    own = 1.01 / z - slope_x * right - slope_y * down
    spot, flat = j.int() * width + i.int(), seen.flatten()

    def lit(dx: int, dy: int) -> Tensor:
        return (own + dx * slope_x + dy * slope_y >= flat.index_select(0, spot + (dy * width + dx))).float()

    upper, lower = torch.lerp(lit(0, 0), lit(1, 0), right), torch.lerp(lit(0, 1), lit(1, 1), right)
    return torch.where(within, torch.lerp(upper, lower, down), 1.0)


def _sky(scene: Scene, ray: Tensor) -> Tensor:
    sky = scene.sky
    assert sky is not None
    up = (ray[2] / _length(ray)).clamp_min(0)
    flat = ray[:2] / (ray[2].clamp_min(0) + 0.25)
    number = torch.full_like(up, sky.clouds, dtype=torch.long)
    cover = texture.sample(number, 0.15 * flat[0], 0.15 * flat[1], torch.zeros_like(up))[0] * sky.cover
    clear = torch.lerp(sky.horizon[:, None], sky.zenith[:, None], up.sqrt())
    return torch.lerp(clear, sky.cloud_colour[:, None], cover)
