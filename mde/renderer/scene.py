"""What a scene is made of, and the builder that layouts place objects with.

World: x and y along the floor, z up, metres. Camera: x right, y down, z forward.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mde.renderer.texture import KINDS

BOX, ELLIPSOID, CYLINDER = 0, 1, 2

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass
class Camera:
    """A pinhole: position (3,) in the world, rotation (3, 3) with rows right, down, forward; pixels in size (H, W)."""

    position: Tensor
    rotation: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int]


@dataclass
class Primitives:
    """P convex solids: centre (P, 3), rotation (P, 3, 3) with local axes as columns, half sizes (P, 3), kind (P,).

    A cylinder stands along its local z; its radius is half * (1 + taper z / half_z): taper makes it a truncated cone.
    """

    centre: Tensor
    rotation: Tensor
    half: Tensor
    kind: Tensor
    taper: Tensor

    def select(self, chosen: Tensor) -> "Primitives":
        return Primitives(*(getattr(self, part.name)[chosen] for part in fields(self)))


@dataclass
class Materials:
    """A row per primitive: albedo = colour_a + texture (colour_b - colour_a), uv = metres * uv_scale + uv_offset."""

    texture: Tensor
    colour_a: Tensor
    colour_b: Tensor
    uv_scale: Tensor
    uv_offset: Tensor
    specular: Tensor
    emission: Tensor


@dataclass
class Lights:
    """Point lights (L, 3), hemispheric ambient light, and the first light's view for shadows: coarser is softer."""

    position: Tensor
    colour: Tensor
    reach: Tensor
    sky: Tensor
    ground: Tensor
    view: Camera
    scale: float


@dataclass
class Sky:
    horizon: Tensor
    zenith: Tensor
    cloud_colour: Tensor
    clouds: int
    cover: float
    visibility: float


@dataclass
class Scene:
    primitives: Primitives
    materials: Materials
    lights: Lights
    camera: Camera
    sky: Sky | None

    def to(self, device: torch.device) -> "Scene":
        """The same scene with its tensors on a device, where it is then rendered."""
        return _moved(self, device)


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{item.name: _moved(getattr(part, item.name), device) for item in fields(part)})
    return part


class Material(NamedTuple):
    texture: int
    a: Colour
    b: Colour
    scale: float  # repeats per metre; 0 stretches the texture once over the whole face
    specular: float = 0.0
    emission: float = 0.0


@dataclass
class Builder:
    """Collects primitives. `at` sets the frame (x, y, z, yaw) in which the following calls place them."""

    rng: Random
    rows: list[list[float]] = field(default_factory=list)
    textures: list[int] = field(default_factory=list)
    origin: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        self.origin = (x, y, z, yaw)

    def world(self, x: float, y: float, z: float = 0.0) -> Vector:
        ox, oy, oz, yaw = self.origin
        c, s = math.cos(yaw), math.sin(yaw)
        return ox + c * x - s * y, oy + s * x + c * y, oz + z

    def add(
        self,
        kind: int,
        centre: Vector,
        half: Vector,
        material: Material,
        yaw: float = 0.0,
        tilt: float = 0.0,
        roll: float = 0.0,
        taper: float = 0.0,
    ) -> None:
        """Rotation: roll about the local y axis, then tilt about x, then yaw about z."""
        texture, a, b, scale, specular, emission = material
        rng = self.rng
        # A texture put on by the metre never starts at the same place; a fitted one is centred.
        uv = (
            (scale, scale, scale, rng.random(), rng.random(), rng.random())
            if scale
            else (0.5 / half[0], 0.5 / half[1], 0.5 / half[2], 0.5, 0.5, 0.5)
        )
        angles = (yaw + self.origin[3], tilt, roll)
        self.rows.append([*self.world(*centre), *half, *angles, kind, taper, *a, *b, *uv, specular, emission])
        self.textures.append(texture)

    def box(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, material: Material) -> None:
        centre = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        self.add(BOX, centre, ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2), material)

    def post(
        self, x: float, y: float, z0: float, z1: float, radius: float, material: Material, taper: float = 0.0
    ) -> None:
        self.add(CYLINDER, (x, y, (z0 + z1) / 2), (radius, radius, (z1 - z0) / 2), material, taper=taper)

    def ball(self, x: float, y: float, z: float, half: Vector, material: Material) -> None:
        self.add(ELLIPSOID, (x, y, z), half, material)

    def clearance(self, eyes: list[Vector], since: int = 0) -> Tensor:
        """Metres from each eye to each solid's bounding box, (eyes, P), 0 inside; the first `since` solids left out."""
        table = torch.tensor(self.rows[since:], dtype=torch.float64)
        rotation = _rotations(table[:, 6:9])
        away = torch.tensor(eyes, dtype=torch.float64)[:, None] - table[:, :3]
        local = (away[:, :, None] @ rotation)[:, :, 0]
        wide = table[:, 3:6] * torch.stack([1 + table[:, 10].abs()] * 2 + [torch.ones(len(table))], 1)
        return (local.abs() - wide).clamp_min(0).norm(dim=2)

    def finish(self, eye: Vector, clearance: float) -> tuple[Primitives, Materials]:
        """The scene's tensors, without the solids that come closer to the camera than `clearance` metres."""
        keep = self.clearance([eye])[0] > clearance
        table = torch.tensor(self.rows, dtype=torch.float64)[keep]
        texture = torch.tensor(self.textures)[keep]
        rotation, table = _rotations(table[:, 6:9]).float(), table.float()
        primitives = Primitives(table[:, :3], rotation, table[:, 3:6], table[:, 9].long(), table[:, 10])
        parts = table[:, 11:14], table[:, 14:17], table[:, 17:20], table[:, 20:23], table[:, 23], table[:, 24]
        return primitives, Materials(texture, *parts)


def _rotations(angles: Tensor) -> Tensor:
    """(P, 3) yaw, tilt, roll -> (P, 3, 3) Rz(yaw) Rx(tilt) Ry(roll)."""
    (cy, ct, cr), (sy, st, sr) = angles.cos().unbind(1), angles.sin().unbind(1)
    rows = [
        [cy * cr - sy * st * sr, -sy * ct, cy * sr + sy * st * cr],
        [sy * cr + cy * st * sr, cy * ct, sy * sr - cy * st * cr],
        [-ct * sr, st, ct * cr],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def look(
    eye: Vector, yaw: float, pitch: float, roll: float, size: tuple[int, int], fov: float, aspect: float
) -> Camera:
    """A camera at eye. yaw 0 looks along +y, pitch > 0 up; fov (radians) spans the width.

    aspect is width / height of what is shown; other than size's own it makes pixels that are not square, as when a 4:3
    picture is stretched to a square one.
    """
    sy, cy, sp, cp = math.sin(yaw), math.cos(yaw), math.sin(pitch), math.cos(pitch)
    forward = torch.tensor([-sy * cp, cy * cp, sp])
    right = torch.tensor([cy, sy, 0.0])
    down = torch.linalg.cross(forward, right)
    sr, cr = math.sin(roll), math.cos(roll)
    rotation = torch.stack([cr * right + sr * down, cr * down - sr * right, forward])
    height, width = size
    half = math.tan(fov / 2)
    fx, fy = width / (2 * half), height / (2 * half / aspect)
    return Camera(torch.tensor(eye), rotation, fx, fy, (width - 1) / 2, (height - 1) / 2, size)


def toward(eye: Vector, target: Vector) -> tuple[float, float]:
    """Yaw and pitch with which `look` points from eye to target."""
    dx, dy, dz = (b - a for a, b in zip(eye, target, strict=True))
    return math.atan2(-dx, dy), math.atan2(dz, math.hypot(dx, dy))


# Materials. Colours are linear albedo.


def hsv(hue: float, saturation: float, value: float) -> Colour:
    def channel(n: float) -> float:
        k = (n + hue * 6) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1))

    return channel(5), channel(3), channel(1)


def scaled(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def pick(rng: Random, *kinds: str) -> int:
    return rng.choice(KINDS[rng.choice(kinds)])


def paint(rng: Random) -> Material:
    """A wall or ceiling: nearly plain, mostly light and little saturated, now and then strong."""
    bold = rng.random() < 0.2
    colour = hsv(rng.random(), rng.uniform(0.2, 0.7) if bold else rng.uniform(0, 0.25), rng.uniform(0.15, 0.85))
    return Material(pick(rng, "plain"), scaled(colour, rng.uniform(0.8, 1)), colour, rng.uniform(0.2, 0.6))


def wallpaper(rng: Random) -> Material:
    base = hsv(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.8))
    other = scaled(base, rng.uniform(0.6, 1.3))
    return Material(
        pick(rng, "stripes", "fabric", "bricks", "tiles", "plaid", "stone"), base, other, rng.uniform(0.4, 1.5)
    )


def wood(rng: Random) -> Material:
    light = hsv(rng.uniform(0.04, 0.11), rng.uniform(0.25, 0.75), rng.uniform(0.12, 0.7))
    dark = scaled(light, rng.uniform(0.35, 0.8))
    return Material(pick(rng, "wood"), dark, light, rng.uniform(0.5, 1.5), specular=rng.choice((0.0, 0.05, 0.15)))


def cloth(rng: Random) -> Material:
    colour = hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.05, 0.8))
    texture = pick(rng, "fabric", "fabric", "plain", "stripes", "plaid", "speckle", "stone")
    return Material(texture, scaled(colour, rng.uniform(0.3, 0.9)), colour, rng.uniform(0.6, 2.5))


def lacquer(rng: Random) -> Material:
    """Painted wood, plastic, enamel: white often, black often, else any colour."""
    value = rng.choice((rng.uniform(0.6, 0.9), rng.uniform(0.02, 0.08), rng.uniform(0.1, 0.7)))
    colour = hsv(rng.random(), rng.uniform(0, 0.9) if rng.random() < 0.5 else rng.uniform(0, 0.15), value)
    return Material(pick(rng, "plain"), scaled(colour, 0.85), colour, rng.uniform(0.5, 2), rng.choice((0.0, 0.1, 0.3)))


def metal(rng: Random) -> Material:
    colour = hsv(rng.uniform(0.5, 0.7), rng.uniform(0, 0.1), rng.uniform(0.1, 0.6))
    return Material(pick(rng, "plain"), scaled(colour, 0.8), colour, 1.0, specular=rng.uniform(0.2, 0.6))


def solid(rng: Random) -> Material:
    """Anything small."""
    return rng.choice((lacquer, lacquer, wood, cloth, metal))(rng)


def floor(rng: Random) -> Material:
    kind = rng.random()
    if kind < 0.4:
        material = wood(rng)
        return material._replace(texture=pick(rng, "planks"), scale=rng.uniform(0.4, 1.2))
    if kind < 0.65:
        base = hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.15, 0.7))
        texture = pick(rng, "tiles", "tiles", "checker", "stone")
        return Material(texture, scaled(base, rng.uniform(0.4, 0.9)), base, rng.uniform(0.3, 1.2), rng.uniform(0, 0.2))
    return cloth(rng)._replace(texture=pick(rng, "speckle", "fabric", "stone", "plain"))


def printed(rng: Random, *kinds: str, emission: float = 0.0) -> Material:
    """A coloured texture stretched over the face: a picture, a page, a row of books, a window."""
    return Material(pick(rng, *kinds), (0.0, 0.0, 0.0), (0.85, 0.85, 0.85), 0.0, emission=emission)


def fitted(material: Material, rng: Random, *kinds: str) -> Material:
    """The same colours with a texture stretched over the face."""
    return material._replace(texture=pick(rng, *kinds), a=scaled(material.a, 0.2), scale=0.0)
