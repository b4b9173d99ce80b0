"""Streets: road and pavements, houses and hedges, parked cars, trees, poles, people, under a sky."""

import math
from random import Random

import torch

from mde.renderer import furniture
from mde.renderer.rooms import frame_aspect
from mde.renderer.scene import (
    BOX,
    Builder,
    Lights,
    Material,
    Scene,
    Sky,
    hsv,
    lacquer,
    look,
    metal,
    paint,
    pick,
    printed,
    scaled,
    toward,
    wallpaper,
)

REACH = 74.0  # metres; the ground ends here, behind a last row of trees and houses, so that depth stays below 80 m
SHADOW_SIDE = 192
FIELD_OF_VIEW = (50.0, 90.0)  # degrees, of the picture's width


def street(rng: Random, size: tuple[int, int]) -> Scene:
    b = Builder(rng)
    road, pavement = rng.uniform(2.8, 6.5), rng.uniform(1.2, 4.0)  # half the road, each pavement
    _ground(b, road, pavement)
    for side in (-1, 1):
        _side(b, side, road, pavement)
    _traffic(b, road)
    _end(b)
    eye = (rng.uniform(-0.9, 0.9) * road, 0.0, rng.uniform(1.2, 2.0))
    if rng.random() < 0.25:
        eye = (rng.choice((-1, 1)) * (road + rng.uniform(0.2, 0.9) * pavement), 0.0, rng.uniform(1.2, 1.9))
    yaw = rng.gauss(0, 0.12) if rng.random() < 0.7 else rng.uniform(-0.9, 0.9)
    fov = math.radians(rng.uniform(*FIELD_OF_VIEW))
    aspect = frame_aspect(rng, size, 3.3 * size[1] / size[0])
    camera = look(eye, yaw, rng.gauss(-0.04, 0.05), rng.gauss(0, 0.02), size, fov, aspect)
    primitives, materials = b.finish(eye, clearance=0.8)
    return Scene(primitives, materials, _sun(rng), camera, _sky(rng))


def _ground(b: Builder, road: float, pavement: float) -> None:
    rng = b.rng
    grey = rng.uniform(0.08, 0.3)
    asphalt = Material(pick(rng, "speckle", "stone"), (grey * 0.7,) * 3, (grey,) * 3, rng.uniform(0.15, 0.6))
    value = rng.uniform(0.2, 0.5)
    slabs = Material(pick(rng, "tiles", "bricks", "speckle"), (value * 0.7,) * 3, (value, value, 0.95 * value), 0.6)
    grass = Material(pick(rng, "foliage", "speckle"), (0.05, 0.09, 0.02), (0.2, 0.32, 0.1), 0.4)
    b.at(0, 0)
    b.post(0, 0, -0.3, -0.02, REACH, rng.choice((grass, slabs, asphalt)))
    b.box(-road, road, -20, 70, -0.2, 0, asphalt)
    for side in (-1, 1):
        inner, outer = sorted((side * road, side * (road + pavement)))
        b.box(inner, outer, -20, 70, -0.2, 0.12, slabs)
        edge = sorted((side * road, side * (road + 0.15)))
        b.box(edge[0], edge[1], -20, 70, -0.2, 0.125, paint(rng)._replace(b=(0.5, 0.5, 0.48)))
    white = Material(pick(rng, "stone"), (0.45,) * 3, (0.8,) * 3, 0.5)
    if rng.random() < 0.75:
        length, gap, y = rng.uniform(1, 4), rng.uniform(1, 5), -4.0
        while y < 55:
            b.box(-0.07, 0.07, y, y + length, -0.1, 0.006, white)
            y += length + gap
    if rng.random() < 0.4:
        for side in (-1, 1):
            x = side * (road - 0.4)
            b.box(x - 0.06, x + 0.06, -20, 60, -0.1, 0.006, white)
    if rng.random() < 0.3:
        y, x = rng.uniform(4, 18), -road + 0.3
        while x < road - 0.5:
            b.box(x, x + 0.45, y, y + 2.5, -0.1, 0.006, white)
            x += 0.95


def _side(b: Builder, side: int, road: float, pavement: float) -> None:
    """Houses or hedges behind the pavement; trees, poles, parked cars and people before them."""
    rng = b.rng
    back = road + pavement
    y, setback = rng.uniform(-12, -4), rng.choice((0.0, 0.0, rng.uniform(1, 8)))
    green = rng.random() < 0.3
    while y < 62:
        length = rng.uniform(6, 18)
        if rng.random() < (0.35 if green else 0.85):
            _house(b, side, back + setback * rng.uniform(0.7, 1.3), y, length)
        else:
            _garden(b, side, back, y, length)
        y += length + (0 if rng.random() < 0.6 else rng.uniform(1, 6))
    spacing = rng.uniform(5, 14)
    if rng.random() < 0.6:
        y = rng.uniform(1, 10)
        while y < 55:
            b.at(side * (road + 0.25 * pavement + 0.4), y)
            furniture.tree(b)
            y += spacing * rng.uniform(0.8, 1.6)
    y = rng.uniform(2, 15)
    while y < 50:
        b.at(side * (road + 0.4), y)
        _pole(b, side)
        y += rng.uniform(10, 25)
    if rng.random() < 0.7:
        y, full = rng.uniform(2, 9), rng.uniform(0.3, 0.9)
        while y < 55:
            if rng.random() < full:
                b.at(side * (road - 1.05), y, 0, 0 if side > 0 else math.pi)
                furniture.car(b)
            y += rng.uniform(5.2, 6.5)
    for _ in range(rng.randint(0, 4)):
        b.at(side * (road + rng.uniform(0.3, 0.9) * pavement), rng.uniform(2.5, 30), 0.12, rng.uniform(0, 6))
        furniture.person(b)


def _house(b: Builder, side: int, x: float, y: float, length: float) -> None:
    rng, storey = b.rng, b.rng.uniform(2.7, 3.6)
    floors, deep = rng.randint(1, 6), 10.0
    colour = hsv(
        rng.uniform(0.02, 0.14) if rng.random() < 0.8 else rng.random(), rng.uniform(0, 0.5), rng.uniform(0.2, 0.8)
    )
    facade = Material(pick(rng, "facade"), scaled(colour, 0.08), colour, 1 / storey)
    b.at(side * (x + deep / 2), y + length / 2)
    for k in range(floors):
        # Each storey is one box whose texture, one storey high, starts at its foot.
        b.add(BOX, (0, 0, (k + 0.5) * storey), (deep / 2, length / 2, storey / 2), facade)
        b.rows[-1][19] = 1 / storey
        b.rows[-1][22] = 0.5
        b.rows[-1][20] = b.rows[-1][21] = 0.5
    top = floors * storey
    roof = wallpaper(rng)
    if rng.random() < 0.5:
        for turn in (-1, 1):
            b.add(BOX, (turn * deep / 4, 0, top + 1.3), (deep / 3.4, length / 2 + 0.2, 0.12), roof, roll=turn * 0.5)
    else:
        b.box(-deep / 2 - 0.3, deep / 2 + 0.3, -length / 2, length / 2, top, top + 0.4, roof)
    front = -side * deep / 2
    for _ in range(rng.randint(1, 3)):
        dy = rng.uniform(-0.4, 0.4) * length
        lo, hi = sorted((front, front - side * 0.08))
        b.box(lo, hi, dy - 0.55, dy + 0.55, 0, 2.3, fitted_door(b))
    if rng.random() < 0.4:
        sign = printed(rng, "picture", "writing")
        lo, hi = sorted((front, front - side * rng.uniform(0.1, 1.2)))
        b.box(lo, hi, -0.4 * length, 0.4 * length, 2.6, 3.1, sign)
    if floors > 1 and rng.random() < 0.3:
        for k in range(1, floors):
            lo, hi = sorted((front, front - side * 0.9))
            b.box(lo, hi, -0.2 * length, 0.2 * length, k * storey, k * storey + 0.15, roof)
            b.box(lo, hi, -0.2 * length, 0.2 * length, k * storey + 0.15, k * storey + 1.0, metal(rng))


def fitted_door(b: Builder) -> Material:
    material = lacquer(b.rng)
    return material._replace(texture=pick(b.rng, "panels"), a=scaled(material.a, 0.2), scale=0.0)


def _garden(b: Builder, side: int, x: float, y: float, length: float) -> None:
    rng = b.rng
    b.at(side * (x + 0.4), y + length / 2)
    high = rng.uniform(0.7, 2.2)
    hedge = Material(pick(rng, "foliage"), (0.01, 0.03, 0.01), (0.15, 0.3, 0.08), 0.8)
    fence = rng.choice((hedge, hedge, wallpaper(rng), wallpaper(rng)))
    b.box(-0.3, 0.3, -length / 2, length / 2, 0, high, fence)
    for _ in range(rng.randint(1, 3)):
        b.at(side * (x + rng.uniform(2, 12)), y + rng.uniform(0, 1) * length)
        furniture.tree(b)


def _pole(b: Builder, side: int) -> None:
    rng, grey = b.rng, metal(b.rng)
    kind = rng.random()
    if kind < 0.45:
        high = rng.uniform(4.5, 8)
        b.post(0, 0, 0, high, 0.07, grey, taper=-0.3)
        lo, hi = sorted((0.0, -side * 1.4))
        b.box(lo, hi, -0.05, 0.05, high - 0.05, high + 0.05, grey)
    elif kind < 0.8:
        high = rng.uniform(2.2, 3)
        b.post(0, 0, 0, high, 0.035, grey)
        if rng.random() < 0.5:
            b.box(-0.3, 0.3, -0.06, -0.04, high - 0.6, high, printed(rng, "picture", "writing"))
        else:
            b.add(2, (0, -0.05, high - 0.3), (0.3, 0.3, 0.01), printed(rng, "picture"), tilt=math.pi / 2)
    else:
        b.box(-0.3, 0.3, -0.3, 0.3, 0, rng.uniform(0.8, 1.4), lacquer(rng))


def _traffic(b: Builder, road: float) -> None:
    rng = b.rng
    for _ in range(rng.randint(0, 4)):
        side = rng.choice((-1, 1))
        b.at(side * rng.uniform(0.25, 0.5) * road, rng.uniform(6, 50), 0, math.pi if side > 0 else 0)
        furniture.car(b)


def _end(b: Builder) -> None:
    """Closes the view: a far row of houses or trees along the edge of the ground."""
    rng = b.rng
    for k in range(16):
        angle = math.radians(-68 + 136 * (k + rng.uniform(-0.3, 0.3)) / 15)
        distance = rng.uniform(60, 68)
        b.at(-distance * math.sin(angle), distance * math.cos(angle), 0, angle)
        if rng.random() < 0.5:
            b.box(-7, 7, -2, 2, 0, rng.uniform(4, 14), wallpaper(rng)._replace(scale=0.2))
        else:
            furniture.foliage(b, 0, 0, 2.5, rng.uniform(5, 8), 4)


def _sun(rng: Random) -> Lights:
    azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.2)
    towards = (math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation))
    focus = (0.0, 14.0, 0.0)
    eye = tuple(f + 150 * t for f, t in zip(focus, towards, strict=True))
    eye = (eye[0], eye[1], eye[2])
    yaw, pitch = toward(eye, focus)
    bright, ambient = rng.uniform(0.3, 2.2), rng.uniform(0.25, 0.5)
    colour = hsv(0.1, rng.uniform(0, 0.3), bright)
    return Lights(
        position=torch.tensor([eye]),
        colour=torch.tensor([colour]),
        reach=torch.tensor([1e4]),
        sky=ambient * torch.tensor(hsv(0.6, rng.uniform(0, 0.3), 1.0)),
        ground=ambient * torch.tensor([0.6, 0.58, 0.5]),
        view=look(eye, yaw, pitch, 0.0, (SHADOW_SIDE, SHADOW_SIDE), 0.4, 1.0),
        scale=5.0,
    )


def _sky(rng: Random) -> Sky:
    bright = rng.uniform(0.6, 1.6)
    grey = rng.random() < 0.35
    zenith = hsv(0.6, rng.uniform(0.05, 0.15) if grey else rng.uniform(0.3, 0.7), bright * 0.8)
    horizon = hsv(rng.choice((0.6, 0.1)), rng.uniform(0.02, 0.15), bright)
    return Sky(
        horizon=torch.tensor(horizon),
        zenith=torch.tensor(zenith),
        cloud_colour=torch.tensor(hsv(0.1, 0.03, bright * rng.uniform(0.8, 1.2))),
        clouds=pick(rng, "clouds"),
        cover=rng.uniform(0, 1),
        visibility=10 ** rng.uniform(2.3, 3.5),
    )
