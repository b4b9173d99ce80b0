"""Compound objects. Each is built around the origin of the builder's frame, standing on z = 0, its front toward -y.

Each function returns the half width and half depth of its footprint, or takes them.
"""

import math

from mde.renderer.scene import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    Builder,
    Material,
    cloth,
    fitted,
    lacquer,
    metal,
    paint,
    pick,
    printed,
    scaled,
    solid,
    wood,
)


def _surface(b: Builder) -> Material:
    return b.rng.choice((wood, wood, lacquer))(b.rng)


def _legs(b: Builder, w: float, d: float, height: float, material: Material) -> None:
    thick = b.rng.uniform(0.012, 0.04)
    round_ = b.rng.random() < 0.4
    for x in (-w + thick, w - thick):
        for y in (-d + thick, d - thick):
            if round_:
                b.post(x, y, 0, height, thick, material)
            else:
                b.box(x - thick, x + thick, y - thick, y + thick, 0, height, material)


def small_thing(b: Builder, x: float, y: float, z: float, size: float = 1.0) -> None:
    """One object of everyday size standing at (x, y, z): mug, bottle, book, box, bowl, ball, paper, can, plant."""
    rng = b.rng
    kind, material = rng.randrange(10), solid(rng)
    yaw = rng.uniform(0, math.pi)
    s = size * rng.uniform(0.75, 1.3)
    if kind == 0:
        b.post(x, y, z, z + 0.1 * s, 0.04 * s, material)
        b.add(CYLINDER, (x + 0.045 * s, y, z + 0.05 * s), (0.025 * s, 0.025 * s, 0.007 * s), material, tilt=math.pi / 2)
    elif kind == 1:
        b.post(x, y, z, z + 0.17 * s, 0.035 * s, material)
        b.post(x, y, z + 0.17 * s, z + 0.22 * s, 0.024 * s, material, taper=-0.45)
        b.post(x, y, z + 0.22 * s, z + 0.26 * s, 0.014 * s, solid(rng))
    elif kind in (2, 3):
        z1 = z
        for _ in range(rng.randint(1, 4)):
            thick = rng.uniform(0.006, 0.025) * s
            half = (rng.uniform(0.07, 0.11) * s, rng.uniform(0.09, 0.15) * s, thick)
            cover = printed(rng, "picture", "writing") if rng.random() < 0.6 else lacquer(rng)
            b.add(BOX, (x, y, z1 + thick), half, cover, yaw=yaw + rng.uniform(-0.2, 0.2))
            z1 += 2 * thick
    elif kind == 4:
        half = (rng.uniform(0.03, 0.15) * s, rng.uniform(0.03, 0.1) * s, rng.uniform(0.03, 0.16) * s)
        cover = printed(rng, "picture") if rng.random() < 0.5 else material
        b.add(BOX, (x, y, z + half[2]), half, cover, yaw=yaw)
    elif kind == 5:
        b.post(x, y, z, z + 0.07 * s, 0.08 * s, material, taper=0.35)
    elif kind == 6:
        radius = rng.uniform(0.03, 0.08) * s
        b.ball(x, y, z + radius, (radius, radius, radius), material)
    elif kind == 7:
        b.add(BOX, (x, y, z + 0.002), (0.105, 0.148, 0.002), printed(rng, "writing", "picture"), yaw=yaw)
    elif kind == 8:
        b.post(x, y, z, z + 0.115 * s, 0.033 * s, printed(rng, "picture"))
    else:
        b.post(x, y, z, z + 0.1 * s, 0.06 * s, material, taper=0.2)
        foliage(b, x, y, z + 0.17 * s, 0.1 * s, 5)


def foliage(b: Builder, x: float, y: float, z: float, radius: float, count: int) -> None:
    rng = b.rng
    green = Material(
        pick(rng, "foliage"),
        (0.01, 0.03, 0.01),
        (rng.uniform(0.08, 0.4), rng.uniform(0.25, 0.5), 0.08),
        1.5 / radius**0.5,
    )
    for _ in range(count):
        half = tuple(radius * rng.uniform(0.35, 0.8) for _ in range(3))
        offset = [radius * rng.uniform(-0.6, 0.6) for _ in range(3)]
        b.add(
            ELLIPSOID,
            (x + offset[0], y + offset[1], z + offset[2]),
            (half[0], half[1], half[2]),
            green,
            yaw=rng.uniform(0, 3),
            tilt=rng.uniform(-0.6, 0.6),
        )


def things_on(b: Builder, w: float, d: float, z: float, count: int, size: float = 1.0) -> None:
    for _ in range(count):
        small_thing(b, b.rng.uniform(-0.85, 0.85) * w, b.rng.uniform(-0.8, 0.8) * d, z, size)


def table(b: Builder, w: float, d: float, height: float, things: int) -> None:
    rng = b.rng
    top, thick = _surface(b), rng.uniform(0.02, 0.06)
    if rng.random() < 0.2:
        b.add(CYLINDER, (0, 0, height - thick / 2), (w, d, thick / 2), top)
        b.post(0, 0, 0, height - thick, 0.06, top)
        b.post(0, 0, 0, 0.04, 0.5 * min(w, d), top)
    else:
        b.box(-w, w, -d, d, height - thick, height, top)
        _legs(b, w * 0.95, d * 0.92, height - thick, top if rng.random() < 0.6 else metal(rng))
    things_on(b, 0.8 * w, 0.8 * d, height, things)


def chair(b: Builder) -> None:
    rng = b.rng
    frame = _surface(b)
    seat = cloth(rng) if rng.random() < 0.4 else frame
    w, d, height, back = (
        rng.uniform(0.19, 0.25),
        rng.uniform(0.19, 0.25),
        rng.uniform(0.42, 0.5),
        rng.uniform(0.8, 1.05),
    )
    if rng.random() < 0.25:  # office chair
        dark = lacquer(rng)
        b.post(0, 0, 0.06, height, 0.03, metal(rng))
        for k in range(5):
            angle = 2 * math.pi * k / 5
            spot = (0.15 * math.cos(angle), 0.15 * math.sin(angle), 0.07)
            b.add(BOX, spot, (0.16, 0.02, 0.02), dark, yaw=angle)
    else:
        _legs(b, w, d, height - 0.03, frame)
    b.box(-w, w, -d, d, height - 0.04, height, seat)
    if rng.random() < 0.5:
        b.box(-w, w, d - 0.03, d, height + 0.12, back, seat)
        b.box(-w, -w + 0.04, d - 0.03, d, height, height + 0.12, frame)
        b.box(w - 0.04, w, d - 0.03, d, height, height + 0.12, frame)
    else:
        for x in (-w, w - 0.04):
            b.box(x, x + 0.04, d - 0.04, d, height, back, frame)
        bars = rng.randint(2, 4)
        for k in range(bars):
            z = height + (back - height) * (k + 1) / bars
            b.box(-w, w, d - 0.03, d - 0.01, z - 0.06, z, frame)
    if rng.random() < 0.2:
        for x in (-w - 0.03, w):
            b.box(x, x + 0.04, -d, d, height + 0.2, height + 0.24, frame)
            b.box(x, x + 0.04, -d, -d + 0.04, height, height + 0.2, frame)


def sofa(b: Builder, w: float) -> float:
    rng = b.rng
    fabric, d = cloth(rng), rng.uniform(0.4, 0.5)
    seat, back, arm = rng.uniform(0.38, 0.46), rng.uniform(0.75, 0.95), rng.uniform(0.1, 0.2)
    b.box(-w, w, -d, d, 0.06, seat - 0.12, fabric)
    b.box(-w, w, d - 0.2, d, 0.06, back, fabric)
    arm_height = seat + rng.uniform(0.1, 0.25)
    for x in (-w, w - arm):
        b.box(x, x + arm, -d, d, 0.06, arm_height, fabric)
        if rng.random() < 0.5:
            b.add(CYLINDER, (x + arm / 2, 0, arm_height), (arm / 2, arm / 2, d), fabric, tilt=math.pi / 2)
    seats = max(1, round((w - arm) / 0.35))
    step = 2 * (w - arm) / seats
    for k in range(seats):
        x = -w + arm + (k + 0.5) * step
        b.box(x - step / 2 + 0.01, x + step / 2 - 0.01, -d - 0.02, d - 0.2, seat - 0.12, seat, fabric)
        b.add(BOX, (x, d - 0.24, seat + 0.2), (step / 2 - 0.01, 0.07, 0.2), fabric, tilt=-0.15)
    for _ in range(rng.randint(0, 3)):
        x = rng.uniform(-w + arm + 0.15, max(w - arm - 0.15, -w + arm + 0.16))
        b.add(
            ELLIPSOID, (x, d - 0.36, seat + 0.19), (0.22, 0.1, 0.2), cloth(rng), tilt=-0.3, yaw=rng.uniform(-0.3, 0.3)
        )
    return d


def bed(b: Builder, w: float) -> float:
    rng = b.rng
    frame, sheet, cover = _surface(b), cloth(rng), cloth(rng)
    d, height = rng.uniform(0.95, 1.05), rng.uniform(0.4, 0.6)
    b.box(-w, w, -d, d, 0.08, height - 0.2, frame)
    b.box(-w + 0.02, w - 0.02, -d + 0.02, d - 0.05, height - 0.2, height, sheet._replace(b=(0.8, 0.8, 0.78)))
    fold = rng.uniform(0.2, 0.55)
    b.box(-w - 0.01, w + 0.01, -d - 0.01, d - fold, height - 0.3, height + 0.05, cover)
    b.box(-w, w, d - 0.05, d, 0, rng.uniform(0.75, 1.3), frame)
    pillows = 1 if w < 0.6 else 2
    for k in range(pillows):
        x = (k - (pillows - 1) / 2) * w
        b.add(
            ELLIPSOID, (x, d - 0.3, height + 0.09), (0.34, 0.22, 0.1), cloth(rng)._replace(b=(0.8, 0.8, 0.8)), tilt=0.25
        )
    for _ in range(rng.randint(0, 2)):
        b.ball(rng.uniform(-w, w) * 0.6, rng.uniform(-d, 0), height + 0.08, (0.3, 0.22, 0.09), cloth(rng))
    return d


def shelf(b: Builder, w: float, height: float) -> float:
    """An open shelf with books, boxes and things."""
    rng = b.rng
    board, d, thick = _surface(b), rng.uniform(0.12, 0.2), 0.02
    levels = max(2, round(height / rng.uniform(0.3, 0.42)))
    for x in (-w, w - thick):
        b.box(x, x + thick, -d, d, 0, height, board)
    if rng.random() < 0.7:
        b.box(-w, w, d - 0.01, d, 0, height, board)
    step = height / levels
    for k in range(levels + 1):
        b.box(-w, w, -d, d, max(k * step - thick, 0), max(k * step, thick), board)
    for k in range(levels):
        z, use = k * step, rng.random()
        if use < 0.5:
            x = -w + thick
            while x < w - 0.2:
                run = min(rng.uniform(0.15, 0.6), w - thick - x)
                deep = rng.uniform(0, 0.1)
                b.box(
                    x, x + run, -d + 0.02 + deep, d - 0.02, z, z + step * rng.uniform(0.55, 0.9), printed(rng, "books")
                )
                x += run + (rng.uniform(0.02, 0.3) if rng.random() < 0.5 else 0.0)
        elif use < 0.9:
            things_on(b, w, 0.6 * d, z, rng.randint(1, 4), min(1.5, step / 0.28))
    return d


def cupboard(b: Builder, w: float, height: float) -> float:
    """A chest, wardrobe or cabinet: a carcass with panelled fronts; low ones carry things."""
    rng = b.rng
    body, d = _surface(b), rng.uniform(0.2, 0.32)
    b.box(-w, w, -d, d, 0.05, height, body)
    b.box(-w + 0.03, w - 0.03, -d + 0.03, d, 0, 0.05, scaled_material(body, 0.4))
    fronts = max(1, round(w / rng.uniform(0.22, 0.4)))
    step, front = 2 * w / fronts, fitted(body, rng, "panels")
    for k in range(fronts):
        b.box(-w + k * step + 0.004, -w + (k + 1) * step - 0.004, -d - 0.018, -d, 0.07, height - 0.02, front)
    if height < 1.3:
        things_on(b, 0.85 * w, 0.6 * d, height, rng.randint(0, 4), rng.uniform(1, 2))
        if rng.random() < 0.2:
            screen(b, height, min(w * 0.7, 0.6))
    return d


def scaled_material(material: Material, factor: float) -> Material:
    return material._replace(a=scaled(material.a, factor), b=scaled(material.b, factor))


def counter(b: Builder, w: float) -> float:
    """A kitchen counter with things on it, a splashback of tiles, and cabinets hung above."""
    rng = b.rng
    d, height = 0.3, rng.uniform(0.86, 0.94)
    body = _surface(b)
    fronts = max(1, round(w / 0.3))
    step, front = 2 * w / fronts, fitted(body, rng, "panels")
    b.box(-w, w, -d + 0.03, d, 0.1, height - 0.04, body)
    b.box(-w, w, -d + 0.08, d, 0, 0.1, lacquer(rng))
    for k in range(fronts):
        x0, x1 = -w + k * step, -w + (k + 1) * step
        b.box(x0 + 0.003, x1 - 0.003, -d + 0.01, -d + 0.03, 0.11, height - 0.06, front)
    b.box(-w - 0.01, w + 0.01, -d - 0.02, d, height - 0.04, height, rng.choice((wood, lacquer, metal))(rng))
    things_on(b, 0.95 * w, 0.7 * d, height, rng.randint(2, 8), 1.3)
    if rng.random() < 0.5:  # a microwave or coffee machine
        x = rng.uniform(-0.6, 0.6) * w
        b.box(x - 0.22, x + 0.22, -0.1, 0.25, height, height + 0.3, lacquer(rng))
        b.box(x - 0.2, x + 0.1, -0.11, -0.1, height + 0.03, height + 0.27, lacquer(rng))
    if rng.random() < 0.75:
        low, high = height + rng.uniform(0.45, 0.6), height + rng.uniform(1.1, 1.4)
        b.box(-w, w, d - 0.34, d, low, high, body)
        for k in range(fronts):
            b.box(-w + k * step + 0.003, -w + (k + 1) * step - 0.003, d - 0.36, d - 0.34, low, high, front)
    return d


def screen(b: Builder, z: float, w: float, x: float = 0.0, y: float = 0.1) -> None:
    rng = b.rng
    dark, tall = lacquer(rng), w * rng.uniform(0.55, 0.7)
    b.box(x - w / 2, x + w / 2, y, y + 0.04, z + 0.1, z + 0.1 + tall, dark._replace(a=(0.02,) * 3, b=(0.03,) * 3))
    on = rng.random() < 0.5
    picture = (
        printed(rng, "picture", "writing", emission=rng.uniform(0.5, 1.2))
        if on
        else lacquer(rng)._replace(b=(0.03,) * 3)
    )
    b.box(x - w / 2 + 0.015, x + w / 2 - 0.015, y - 0.004, y, z + 0.115, z + 0.085 + tall, picture)
    b.box(x - 0.03, x + 0.03, y + 0.02, y + 0.05, z, z + 0.2, dark)
    b.box(x - 0.12, x + 0.12, y - 0.07, y + 0.1, z, z + 0.012, dark)


def desk(b: Builder, w: float) -> float:
    rng = b.rng
    d, height, top = rng.uniform(0.3, 0.42), rng.uniform(0.7, 0.77), _surface(b)
    b.box(-w, w, -d, d, height - 0.03, height, top)
    _legs(b, w, d, height - 0.03, top)
    if rng.random() < 0.5:
        x = rng.choice((-1, 1)) * (w - 0.22)
        b.box(x - 0.2, x + 0.2, -d + 0.04, d - 0.02, 0.03, height - 0.05, fitted(top, rng, "panels"))
    for _ in range(rng.randint(0, 2)):
        screen(b, height, rng.uniform(0.4, 0.65), rng.uniform(-0.5, 0.5) * w, rng.uniform(0, 0.6) * d)
    if rng.random() < 0.7:
        b.box(-0.22, 0.22, -0.6 * d, -0.6 * d + 0.14, height, height + 0.02, printed(rng, "writing"))
    things_on(b, 0.9 * w, 0.8 * d, height, rng.randint(2, 8))
    return d


def lamp(b: Builder, z: float, height: float) -> None:
    rng = b.rng
    pole = metal(rng)
    b.post(0, 0, z, z + 0.02, 0.1, pole)
    b.post(0, 0, z, z + height, 0.012, pole)
    on = rng.choice((0.0, 1.5))
    b.post(
        0,
        0,
        z + height - 0.22,
        z + height + 0.05,
        0.16,
        cloth(rng)._replace(b=(0.8, 0.7, 0.5), emission=on),
        taper=-0.3,
    )


def person(b: Builder) -> None:
    """A standing figure of ellipsoids and tapered cylinders."""
    rng = b.rng
    s, shirt, trousers = rng.uniform(0.88, 1.08), cloth(rng), cloth(rng)
    skin_value = rng.uniform(0.15, 0.6)
    skin = Material(pick(rng, "plain"), (skin_value,) * 3, (skin_value, 0.72 * skin_value, 0.55 * skin_value), 1.0)
    stride = rng.uniform(0, 0.25)
    for side in (-1, 1):
        x = 0.09 * side * s
        b.add(CYLINDER, (x, 0, 0.42 * s), (0.075 * s, 0.085 * s, 0.42 * s), trousers, tilt=stride * side, taper=0.3)
        b.box(x - 0.05, x + 0.05, -0.18 + 0.3 * stride * side, 0.08 + 0.3 * stride * side, 0, 0.08, lacquer(rng))
        b.add(
            CYLINDER,
            (0.25 * side * s, 0, 1.12 * s),
            (0.05 * s, 0.05 * s, 0.3 * s),
            shirt,
            tilt=-stride * side,
            roll=0.12 * side,
        )
        b.ball(0.29 * side * s, 0, 0.8 * s, (0.05 * s, 0.05 * s, 0.07 * s), skin)
    b.add(CYLINDER, (0, 0, 1.12 * s), (0.18 * s, 0.12 * s, 0.3 * s), shirt, taper=0.15)
    b.ball(0, 0, 1.42 * s, (0.2 * s, 0.11 * s, 0.08 * s), shirt)
    b.post(0, 0, 1.42 * s, 1.54 * s, 0.05 * s, skin)
    b.ball(0, 0, 1.63 * s, (0.085 * s, 0.1 * s, 0.12 * s), skin)
    b.ball(0, 0.02 * s, 1.67 * s, (0.092 * s, 0.1 * s, 0.1 * s), lacquer(rng))


def plant(b: Builder) -> None:
    rng = b.rng
    b.post(0, 0, 0, 0.3, 0.16, lacquer(rng), taper=0.2)
    b.post(0, 0, 0.3, 0.7, 0.015, wood(rng))
    foliage(b, 0, 0, rng.uniform(0.7, 1.1), rng.uniform(0.25, 0.45), 9)


def boxes(b: Builder) -> None:
    """A pile of cartons, crates, baskets or a bin."""
    rng, z = b.rng, 0.0
    for _ in range(rng.randint(1, 3)):
        half = (rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.3), rng.uniform(0.08, 0.25))
        material = rng.choice((solid, cloth, paint))(rng)
        if z == 0 and rng.random() < 0.3:
            b.post(0, 0, 0, 2 * half[2], half[0], material, taper=0.15)
            return
        b.add(BOX, (rng.uniform(-0.05, 0.05), 0, z + half[2]), half, material, yaw=rng.uniform(-0.4, 0.4))
        z += 2 * half[2]


def car(b: Builder) -> None:
    """Along y, nose toward -y."""
    rng = b.rng
    body, glass = (
        lacquer(rng)._replace(specular=0.5),
        Material(pick(rng, "clouds"), (0.02,) * 3, (0.15, 0.17, 0.2), 0.5, 0.6),
    )
    tyre, w = Material(pick(rng, "plain"), (0.01,) * 3, (0.03,) * 3, 1.0), rng.uniform(0.84, 0.95)
    length, belt, roof = rng.uniform(1.9, 2.4), rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.6)
    if rng.random() < 0.2:
        length, belt, roof = rng.uniform(2.3, 3.2), 1.2, rng.uniform(1.9, 2.6)
    b.box(-w, w, -length, length, 0.28, belt * 0.8, body)
    b.box(-w * 0.97, w * 0.97, -length * 0.97, length * 0.95, belt * 0.8, belt, body)
    front, rear = -length * rng.uniform(0.3, 0.45), length * rng.uniform(0.6, 0.95)
    slant = rng.uniform(0.2, 0.45)
    b.box(-w * 0.84, w * 0.84, front + slant, rear - 0.15, belt, roof - 0.06, glass)
    b.box(-w * 0.86, w * 0.86, front + slant, rear - 0.12, roof - 0.08, roof, body)
    tall, angle = (roof - belt) / 2, math.atan2(slant, roof - belt)
    b.add(BOX, (0, front + slant * 0.55, belt + tall - 0.03), (w * 0.83, 0.08, tall * 1.05), glass, tilt=-angle)
    b.add(BOX, (0, rear - 0.15, belt + tall - 0.03), (w * 0.83, 0.08, tall), glass, tilt=angle * 0.6)
    for y in ((front + rear) / 2 + slant / 2, rear - 0.3):
        b.box(-w * 0.85, w * 0.85, y - 0.05, y + 0.05, belt, roof - 0.05, body)
    for x in (-w, w):
        for y in (-0.6 * length, 0.6 * length):
            b.add(CYLINDER, (x * 0.95, y, 0.32), (0.32, 0.32, 0.11), tyre, roll=math.pi / 2)
            b.add(CYLINDER, (x, y, 0.32), (0.19, 0.19, 0.07), metal(rng), roll=math.pi / 2)
        light = Material(pick(rng, "plain"), (0.5, 0.0, 0.0), (0.6, 0.03, 0.02), 1.0, 0.3)
        b.box(x * 0.8 - 0.12, x * 0.8 + 0.12, length, length + 0.01, belt * 0.65, belt * 0.8, light)
        b.box(x * 0.8 - 0.14, x * 0.8 + 0.14, -length - 0.01, -length, belt * 0.6, belt * 0.75, metal(rng))
    for y in (-length - 0.012, length + 0.002):
        b.box(-0.25, 0.25, y, y + 0.01, 0.45, 0.56, printed(rng, "writing"))


def tree(b: Builder) -> None:
    rng = b.rng
    height, trunk = rng.uniform(3.5, 11), wood(rng)
    radius = rng.uniform(0.08, 0.25)
    b.post(0, 0, 0, height * 0.7, radius, trunk, taper=-0.3)
    crown = height * rng.uniform(0.22, 0.35)
    foliage(b, 0, 0, height - crown * 0.8, crown * 1.2, 8)
