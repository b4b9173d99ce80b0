"""Furnished rooms: walls with doors, windows and pictures, furniture along them and in the middle, and a camera."""

import math
from random import Random

import torch
from torch import Tensor

from mde.renderer import furniture
from mde.renderer.scene import (
    Builder,
    Camera,
    Lights,
    Scene,
    Vector,
    cloth,
    fitted,
    floor,
    hsv,
    lacquer,
    look,
    metal,
    paint,
    printed,
    toward,
    wallpaper,
    wood,
)

SHADOW_SIDES = (64, 96, 128, 192)
FIELD_OF_VIEW = (48.0, 88.0)  # degrees, of the picture's width


def room(rng: Random, size: tuple[int, int]) -> Scene:
    b = Builder(rng)
    w, d = rng.uniform(1.2, 3.2), rng.uniform(1.4, 4.2)  # half the width and depth, metres
    if rng.random() < 0.1:
        w, d = 1.6 * w, 1.6 * d
    height = rng.uniform(2.3, 3.1)
    _shell(b, w, d, height)
    shell = len(b.rows)
    targets: list[Vector] = []
    for side in range(4):
        _wall(b, side, w, d, height, targets)
    tops = _middle(b, w, d, targets)
    _ceiling(b, w, d, height)
    camera = _camera(b, w, d, height, targets, tops, size, shell)
    primitives, materials = b.finish(_vector(camera.position), clearance=0.2)
    return Scene(primitives, materials, _lights(rng, w, d, height), camera, None)


def _vector(position: Tensor) -> Vector:
    x, y, z = position.tolist()
    return x, y, z


def _shell(b: Builder, w: float, d: float, height: float) -> None:
    rng, t = b.rng, 0.2
    walls = paint(rng)
    b.at(0, 0)
    b.box(-w - t, w + t, -d - t, d + t, -t, 0, floor(rng))
    ceiling = paint(rng)
    b.box(-w - t, w + t, -d - t, d + t, height, height + t, ceiling._replace(b=hsv(0.12, 0.05, rng.uniform(0.6, 0.85))))
    for side in range(4):
        material = walls if rng.random() < 0.75 else rng.choice((paint, wallpaper, wallpaper, wood))(rng)
        along, away = (w, d) if side % 2 == 0 else (d, w)
        b.at(0, 0, 0, side * math.pi / 2)
        b.box(-along - t, along + t, away, away + t, -t, height + t, material)  # overlapping: no ray slips through
    if rng.random() < 0.3:  # a chimney breast, pillar or a room that is not a rectangle
        x, y = rng.choice((-1, 1)), rng.choice((-1, 1))
        bx, by = rng.uniform(0.2, 0.35 * w), rng.uniform(0.2, 0.35 * d)
        b.at(x * (w - bx), y * (d - by))
        b.box(-bx, bx, -by, by, 0, height, walls)


def _wall(b: Builder, side: int, w: float, d: float, height: float, targets: list[Vector]) -> None:
    """Fills one wall from left to right; the frame is turned so that the wall is at +y."""
    rng, yaw = b.rng, side * math.pi / 2
    along, away = (w, d) if side % 2 == 0 else (d, w)
    b.at(0, 0, 0, yaw)
    skirting = lacquer(rng)
    if rng.random() < 0.7:
        b.box(-along, along, away - 0.015, away, 0, rng.uniform(0.06, 0.14), skirting)
    x = -along + rng.uniform(0.0, 0.6)
    crowded = rng.uniform(0.0, 0.8)
    while x < along - 0.5:
        room_left = along - x
        half, high = _piece(b, x, away, yaw, room_left, height, targets)
        centre = x + half
        if high < 1.5 and centre + half <= along:
            _hang(b, centre, half, high, away, yaw, height)
        x += 2 * half + (0.03 if rng.random() < crowded else rng.uniform(0.1, 1.2))


def _piece(
    b: Builder, x: float, away: float, yaw: float, left: float, height: float, targets: list[Vector]
) -> tuple[float, float]:
    """Puts one piece against the wall from x on; its half width and its height."""
    rng = b.rng
    half = min(rng.uniform(0.35, 1.1), left / 2)
    kind = rng.choices(
        ("nothing", "door", "sofa", "bed", "shelf", "cupboard", "wardrobe", "counter", "desk", "small", "radiator"),
        (2.2, 1.0, 1.5, 1.2, 1.8, 2.0, 0.7, 1.6, 1.8, 1.6, 0.6),
    )[0]

    def stand(depth: float) -> None:
        """The frame of a piece of this half depth standing at the wall."""
        b.at(0, 0, 0, yaw)
        cx, cy, _ = b.world(x + half, away - depth - 0.02)
        b.at(cx, cy, 0, yaw)

    if kind == "door":
        half = 0.45
        stand(0.02)
        frame, leaf = lacquer(rng), rng.choice((lacquer, wood))(rng)
        tall = min(2.05, height - 0.1)
        b.box(-0.42, 0.42, -0.0, 0.03, 0, tall, fitted(leaf, rng, "panels"))
        for side in (-0.48, 0.42):
            b.box(side, side + 0.06, -0.02, 0.03, 0, tall + 0.06, frame)
        b.box(-0.42, 0.42, -0.02, 0.03, tall, tall + 0.06, frame)
        b.ball(0.34 * rng.choice((-1, 1)), -0.04, 1.0, (0.03, 0.04, 0.03), metal(rng))
        return half, 2.1
    if kind == "sofa":
        half = max(half, 0.45)
        stand(0.5)
        furniture.sofa(b, half)
        _aim(b, targets, 0.5)
        if rng.random() < 0.5:  # a low table in front
            b.at(*b.world(0, -1.0)[:2], 0, yaw)
            furniture.table(b, 0.45, 0.3, 0.42, rng.randint(0, 4))
        return half, 0.9
    if kind == "bed":
        half = rng.choice((0.48, 0.7, 0.85))
        stand(1.05)
        furniture.bed(b, half)
        _aim(b, targets, 0.5)
        return half, 1.2
    if kind == "shelf":
        tall = rng.uniform(0.8, 2.1)
        stand(0.2)
        furniture.shelf(b, half, tall)
        _aim(b, targets, tall / 2)
        return half, tall
    if kind in ("cupboard", "wardrobe"):
        tall = rng.uniform(0.5, 1.1) if kind == "cupboard" else rng.uniform(1.7, 2.2)
        stand(0.32)
        furniture.cupboard(b, half, tall)
        _aim(b, targets, min(tall, 1.2))
        return half, tall if kind == "wardrobe" else tall + 0.3
    if kind == "counter":
        half = min(rng.uniform(0.6, 1.6), left / 2)
        stand(0.32)
        furniture.counter(b, half)
        _aim(b, targets, 1.0)
        return half, 2.0
    if kind == "desk":
        half = max(half, 0.45)
        stand(0.42)
        furniture.desk(b, half)
        _aim(b, targets, 0.8)
        if rng.random() < 0.7:
            b.at(*b.world(rng.uniform(-0.2, 0.2), -0.65)[:2], 0, yaw + math.pi + rng.uniform(-0.8, 0.8))
            furniture.chair(b)
        return half, 1.3
    if kind == "small":
        half = 0.3
        stand(0.3)
        rng.choice((furniture.chair, furniture.boxes, furniture.plant, furniture.person))(b)
        return half, 1.0
    if kind == "radiator":
        half = min(0.6, half)
        stand(0.05)
        ribs = max(3, round(half / 0.04))
        white = lacquer(rng)
        for k in range(ribs):
            rib = -half + (k + 0.5) * 2 * half / ribs
            b.box(rib - 0.02, rib + 0.02, -0.05, 0.03, 0.12, 0.7, white)
        return half, 0.8
    return half, 0.0


def _aim(b: Builder, targets: list[Vector], z: float) -> None:
    targets.append(b.world(0, 0, z))


def _hang(b: Builder, x: float, half: float, low: float, away: float, yaw: float, height: float) -> None:
    """A window, picture, clock, whiteboard or short shelf on the wall above a piece of the given height."""
    rng = b.rng
    b.at(0, 0, 0, yaw)
    low = max(low + 0.15, 0.9)
    kind, top = rng.random(), height - 0.2
    if kind < 0.3 and top - low > 0.5:
        w = min(half, rng.uniform(0.4, 0.9))
        frame = lacquer(rng)
        bright = rng.uniform(0.5, 1.6)
        view = printed(rng, "window", "window", "blinds", emission=bright)
        b.box(x - w, x + w, away - 0.01, away + 0.01, low, top, view)
        b.box(x - w - 0.05, x + w + 0.05, away - 0.1, away, low - 0.04, low, frame)
        for edge in (x - w - 0.04, x + w):
            b.box(edge, edge + 0.04, away - 0.03, away, low, top, frame)
        if rng.random() < 0.4:
            drape = cloth(rng)
            for edge in (x - w - 0.1, x + w - 0.15):
                for k in range(4):
                    b.post(edge + 0.07 * k, away - 0.08, rng.choice((0.05, low - 0.1)), top + 0.08, 0.045, drape)
    elif kind < 0.75:
        for _ in range(rng.randint(1, 3)):
            w, h = rng.uniform(0.12, 0.45), rng.uniform(0.12, 0.4)
            z = rng.uniform(low, max(low + 0.05, top - 2 * h))
            cx = x + rng.uniform(-1, 1) * max(half - w, 0)
            cover = printed(rng, "picture", "picture", "writing", "ornament")
            b.box(cx - w, cx + w, away - rng.uniform(0.008, 0.04), away, z, min(z + 2 * h, top), cover)
    elif kind < 0.85:
        board = rng.choice((wood, lacquer))(rng)
        z = rng.uniform(max(low + 0.3, 1.3), max(low + 0.31, 1.7))
        b.box(x - half, x + half, away - 0.22, away, z - 0.025, z, board)
        b.at(*b.world(x, away - 0.11, 0), yaw)
        furniture.things_on(b, 0.9 * half, 0.05, z, rng.randint(1, 5))


def _middle(b: Builder, w: float, d: float, targets: list[Vector]) -> list[Vector]:
    """A rug, tables with chairs, people and clutter away from the walls; the middles of the table tops."""
    rng = b.rng
    tops: list[Vector] = []
    if rng.random() < 0.4:
        rw, rd = rng.uniform(0.3, 0.6) * w, rng.uniform(0.3, 0.6) * d
        b.at(rng.uniform(-0.3, 0.3) * w, rng.uniform(-0.3, 0.3) * d, 0, rng.choice((0, 0, rng.uniform(-0.4, 0.4))))
        rug = printed(rng, "ornament") if rng.random() < 0.6 else cloth(rng)
        b.box(-rw, rw, -rd, rd, 0, 0.012, rug)
    yaw = rng.choice((0, math.pi / 2, rng.uniform(0, math.pi)))
    for _ in range(rng.choices((0, 1, 2, 3), (0.2, 0.5, 0.2, 0.1))[0]):
        x, y = rng.uniform(-0.5, 0.5) * w, rng.uniform(-0.5, 0.5) * d
        tw, td, tall = rng.uniform(0.4, 0.95), rng.uniform(0.3, 0.5), rng.choice((0.42, 0.74, 0.74))
        b.at(x, y, 0, yaw)
        furniture.table(b, tw, td, tall, rng.randint(1, 9))
        tops.append((x, y, tall))
        if tall > 0.5:
            for side in (-1, 1):
                for k in range(rng.randint(0, 2)):
                    b.at(x, y, 0, yaw)
                    spot = b.world((k - 0.5) * tw, side * (td + rng.uniform(0.05, 0.45)))
                    b.at(spot[0], spot[1], 0, yaw + (0 if side > 0 else math.pi) + rng.uniform(-0.4, 0.4))
                    furniture.chair(b)
    pieces = (
        furniture.chair,
        furniture.boxes,
        furniture.plant,
        furniture.person,
        furniture.boxes,
        _floor_lamp,
        _armchair,
    )
    for _ in range(rng.randint(0, 4)):
        x, y = rng.uniform(-0.8, 0.8) * w, rng.uniform(-0.8, 0.8) * d
        b.at(x, y, 0, rng.uniform(0, 2 * math.pi))
        rng.choice(pieces)(b)
        targets.append((x, y, 0.5))
    return tops


def _floor_lamp(b: Builder) -> None:
    furniture.lamp(b, 0, b.rng.uniform(1.2, 1.7))


def _armchair(b: Builder) -> None:
    furniture.sofa(b, b.rng.uniform(0.4, 0.5))


def _ceiling(b: Builder, w: float, d: float, height: float) -> None:
    rng = b.rng
    b.at(0, 0)
    bulb = lacquer(rng)._replace(b=(1.0, 1.0, 0.95), emission=2.5)
    if rng.random() < 0.35:
        for x in (-0.5, 0.5):
            for y in (-0.5, 0.5):
                b.box(x * w - 0.15, x * w + 0.15, y * d - 0.5, y * d + 0.5, height - 0.03, height, bulb)
    elif rng.random() < 0.5:
        drop = rng.uniform(0.3, 0.9)
        b.post(0, 0, height - drop, height, 0.008, metal(rng))
        b.post(0, 0, height - drop - 0.2, height - drop, 0.2, cloth(rng)._replace(emission=1.0), taper=-0.4)


def _camera(
    b: Builder,
    w: float,
    d: float,
    height: float,
    targets: list[Vector],
    tops: list[Vector],
    size: tuple[int, int],
    shell: int,
) -> Camera:
    """Across the room as a person holds a camera, at a piece of furniture, or close above a table with things on it."""
    rng = b.rng
    kind, need = rng.random(), rng.uniform(0.3, 1.0)  # cameras are mostly held with nothing within arm's length
    if kind < 0.2 and tops:
        aim = rng.choice(tops)
        b.at(*aim[:2])
        furniture.things_on(b, 0.4, 0.3, aim[2], rng.randint(2, 9))
        views = [_toward(rng, aim, (0.35, 1.0), (0.3, 1.15), (w, d, height)) for _ in range(6)]
        need = 0.25
    elif kind < 0.45 and targets + tops:
        aim = rng.choice(targets + tops)
        views = [_toward(rng, aim, (1.0, 2.8), (0.0, 0.6), (w, d, height)) for _ in range(6)]
    else:
        views = [_across(rng, w, d, height) for _ in range(6)]
    free = b.clearance([eye for eye, _ in views], since=shell).amin(1).tolist()
    eye, aim = next((view for view, gap in zip(views, free, strict=True) if gap > need), views[free.index(max(free))])
    yaw, pitch = toward(eye, aim)
    fov = math.radians(rng.uniform(*FIELD_OF_VIEW))
    return look(eye, yaw, pitch, rng.gauss(0, 0.05), size, fov, frame_aspect(rng, size, 4 / 3))


def _across(rng: Random, w: float, d: float, height: float) -> tuple[Vector, Vector]:
    """From near one wall or corner toward the other half of the room."""
    x, y = rng.uniform(-0.85, 0.85) * w, rng.choice((-1, 1)) * rng.uniform(0.4, 0.92) * d
    if rng.random() < 0.4:
        x, y = rng.choice((-1, 1)) * rng.uniform(0.4, 0.92) * w, rng.uniform(-0.85, 0.85) * d
    eye = _inside((x, y, rng.triangular(0.5, 2.0, 1.4)), (w, d, height))
    aim = (rng.uniform(-0.8, 0.8) * w - 0.5 * x, rng.uniform(-0.8, 0.8) * d - 0.5 * y, rng.uniform(0.3, 1.4))
    return eye, aim


def _inside(eye: Vector, walls: Vector) -> Vector:
    """The eye, moved to 0.3 m from walls, floor and ceiling where it is nearer."""
    (x, y, z), (w, d, height), gap = eye, walls, 0.3
    return min(max(x, gap - w), w - gap), min(max(y, gap - d), d - gap), min(max(z, gap), height - gap)


def _toward(
    rng: Random, target: Vector, distances: tuple[float, float], pitches: tuple[float, float], walls: Vector
) -> tuple[Vector, Vector]:
    """At the target, looking down on it, from the side of the room's middle, since furniture stands at walls."""
    x, y, z = target
    distance, pitch = rng.uniform(*distances), rng.uniform(*pitches)
    angle, reach = math.atan2(-y, -x) + rng.gauss(0, 0.7), distance * math.cos(pitch)
    eye = (
        x + reach * math.cos(angle),
        y + reach * math.sin(angle),
        z + distance * math.sin(pitch),
    )
    return _inside(eye, walls), (x + rng.gauss(0, 0.15), y + rng.gauss(0, 0.15), z)


def frame_aspect(rng: Random, size: tuple[int, int], wide: float) -> float:
    """The frame's own aspect, or up to `wide` of them, as when a camera's picture is stretched to a square input."""
    own = size[1] / size[0]
    return own if own >= wide or rng.random() < 0.3 else rng.uniform(own, wide)


def _lights(rng: Random, w: float, d: float, height: float) -> Lights:
    """A main light at the ceiling or at a window that casts shadows, and up to two weaker ones."""
    count = rng.randint(1, 3)
    positions = [
        (rng.uniform(-0.9, 0.9) * w, rng.uniform(-0.9, 0.9) * d, rng.uniform(1.5, height - 0.1)) for _ in range(count)
    ]
    positions[0] = (positions[0][0], positions[0][1], height - 0.08)
    if rng.random() < 0.3:
        positions[0] = (rng.choice((-1, 1)) * (w - 0.1), rng.uniform(-0.9, 0.9) * d, rng.uniform(1.6, height - 0.1))
    warm = [
        hsv(rng.uniform(0.07, 0.13) if rng.random() < 0.6 else 0.6, rng.uniform(0, 0.35), 1.0) for _ in range(count)
    ]
    power = [rng.uniform(0.8, 1.6)] + [rng.uniform(0.1, 0.5) for _ in range(count - 1)]
    eye = positions[0]
    yaw, pitch = toward(eye, (rng.uniform(-0.3, 0.3) * w, rng.uniform(-0.3, 0.3) * d, 0.0))
    side = rng.choice(SHADOW_SIDES)
    view = look(eye, yaw, pitch, 0.0, (side, side), math.radians(125), 1.0)
    ambient = rng.uniform(0.08, 0.4)
    return Lights(
        position=torch.tensor(positions),
        colour=torch.tensor(warm) * torch.tensor(power)[:, None],
        reach=torch.tensor([rng.uniform(1.5, 4.0) for _ in range(count)]),
        sky=torch.full((3,), ambient),
        ground=torch.full((3,), ambient * rng.uniform(0.4, 0.9)),
        view=view,
        scale=1.0,
    )
