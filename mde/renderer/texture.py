"""A seeded atlas of tileable procedural textures with mip levels, sampled in surface coordinates."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 256
LEVELS = 8

Painter = Callable[[torch.Generator], Tensor]


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _noise(generator: torch.Generator, slope: float, stretch: float = 1.0) -> Tensor:
    """Periodic noise (SIDE, SIDE) in 0..1 of amplitude frequency ** -slope, drawn out along v where stretch < 1."""
    frequency = torch.fft.fftfreq(SIDE, 1 / SIDE)
    radius = torch.sqrt((frequency[:, None] * stretch) ** 2 + frequency[None, :] ** 2).clamp_min(1)
    white = torch.fft.fft2(torch.rand(SIDE, SIDE, generator=generator) - 0.5)
    field = torch.fft.ifft2(white * radius**-slope).real
    return torch.sigmoid((field - field.mean()) / field.std() * 1.3)


def _grid() -> tuple[Tensor, Tensor]:
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    return axis[None, :].expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE)


def _grey(field: Tensor) -> Tensor:
    return field.clamp(0, 1).expand(3, SIDE, SIDE)


def _cells(generator: torch.Generator, columns: int, rows: int, shift: float, joint: float) -> tuple[Tensor, Tensor]:
    """A running bond of cells: a random value per cell in 0..1, and true on the joints between them."""
    u, v = _grid()
    row = (v * rows).floor()
    x = u * columns + shift * (row % 2)
    value = torch.rand(rows, columns, generator=generator)[row.long() % rows, x.floor().long() % columns]
    edge_x = (x % 1) * SIDE / columns
    edge_y = ((v * rows) % 1) * SIDE / rows
    return value, (edge_x < joint) | (edge_y < joint)


def _plain(g: torch.Generator) -> Tensor:
    return _grey(0.5 + (_noise(g, _uniform(g, 0.2, 1.6)) - 0.5) * _uniform(g, 0.1, 0.5))


def _stone(g: torch.Generator) -> Tensor:
    return _grey(_noise(g, _uniform(g, 0.7, 1.6)))


def _speckle(g: torch.Generator) -> Tensor:
    return _grey(0.6 * _noise(g, _uniform(g, 0.0, 0.4)) + 0.4 * _noise(g, 1.2))


def _wood(g: torch.Generator) -> Tensor:
    _, v = _grid()
    grain = _noise(g, _uniform(g, 0.9, 1.3), stretch=_uniform(g, 0.05, 0.12))
    rings = 0.5 + 0.5 * torch.sin(2 * math.pi * (_integer(g, 4, 12) * v + 3 * grain))
    return _grey(0.65 * grain + 0.35 * rings * _noise(g, 0.5, stretch=0.1))


def _planks(g: torch.Generator) -> Tensor:
    value, joint = _cells(g, _integer(g, 1, 2), _integer(g, 5, 12), 0.5, 1.5)
    field = 0.45 * value + 0.55 * _noise(g, 1.0, stretch=0.07)
    return _grey(torch.where(joint, 0.0, field))


def _tiles(g: torch.Generator) -> Tensor:
    count = _integer(g, 2, 8)
    value, joint = _cells(g, count, count, 0.0, _uniform(g, 2, 5))
    field = 0.55 + 0.3 * (value - 0.5) + 0.3 * (_noise(g, 1.0) - 0.5)
    return _grey(torch.where(joint, float(_integer(g, 0, 1)), field))


def _bricks(g: torch.Generator) -> Tensor:
    value, joint = _cells(g, 4, 12, 0.5, 3.0)
    field = 0.2 + 0.4 * value + 0.3 * _noise(g, 0.6)
    return _grey(torch.where(joint, 0.95, field))


def _checker(g: torch.Generator) -> Tensor:
    u, v = _grid()
    count = 2 * _integer(g, 1, 5)
    board = ((u * count).floor() + (v * count).floor()) % 2
    return _grey(0.15 + 0.7 * board + 0.2 * (_noise(g, 0.8) - 0.5))


def _stripes(g: torch.Generator) -> Tensor:
    u, v = _grid()
    axis = u if _integer(g, 0, 1) else v
    wave = torch.sin(2 * math.pi * axis * _integer(g, 3, 24))
    return _grey(torch.sigmoid(_uniform(g, 1, 9) * wave) * 0.85 + 0.15 * _noise(g, 0.4))


def _plaid(g: torch.Generator) -> Tensor:
    u, v = _grid()
    bands = torch.rand(3, 16, generator=g)
    cloth = 0.5 * bands[:, (u * 16).long()] + 0.5 * bands[:, (v * 16).long()]
    return (cloth + 0.2 * (_noise(g, 0.1) - 0.5)).clamp(0, 1)


def _fabric(g: torch.Generator) -> Tensor:
    u, v = _grid()
    count = _integer(g, 24, 64)
    weave = torch.sin(2 * math.pi * count * u) * torch.sin(2 * math.pi * count * v)
    return _grey(0.5 + 0.2 * weave + 0.7 * (_noise(g, 0.9) - 0.5))


def _ornament(g: torch.Generator) -> Tensor:
    """A rug: noise folded into four-fold symmetry, in a few colours, with borders."""
    u, v = _grid()
    quarter = _noise(g, 1.1)[: SIDE // 2, : SIDE // 2]
    half = torch.cat([quarter, quarter.flip(1)], 1)
    folded = torch.cat([half, half.flip(0)], 0)
    palette = 0.1 + 0.8 * torch.rand(6, 3, generator=g)
    edge = torch.minimum(torch.minimum(u, 1 - u), torch.minimum(v, 1 - v))
    level = torch.where(edge < 0.05, 5, torch.where(edge < 0.1, 4, (folded * 4).long().clamp(0, 3)))
    return palette[level].permute(2, 0, 1) * (0.8 + 0.4 * (_noise(g, 0.3) - 0.5))


def _rectangles(image: Tensor, g: torch.Generator, count: int, small: float, large: float) -> Tensor:
    for _ in range(count):
        w, h = (int(SIDE * _uniform(g, small, large)) + 1 for _ in range(2))
        x, y = _integer(g, 0, SIDE - 1 - w), _integer(g, 0, SIDE - 1 - h)
        image[:, y : y + h, x : x + w] = torch.rand(3, 1, 1, generator=g)
    return image


def _picture(g: torch.Generator) -> Tensor:
    """A framed picture, poster or screen: soft colour fields, blocks, sometimes lines of writing."""
    hue = torch.rand(3, 1, 1, generator=g)
    palette = [
        (0.15 + 0.8 * _uniform(g, 0, 1)) * torch.lerp(hue, torch.rand(3, 1, 1, generator=g), 0.4) for _ in range(3)
    ]
    image = torch.lerp(palette[0], palette[1], _noise(g, _uniform(g, 1.0, 1.8))[None])
    image = torch.lerp(image, palette[2] + 0.2, ((_noise(g, 1.5) - 0.6) * 12).clamp(0, 1)[None])
    image = _rectangles(image, g, _integer(g, 0, 8), 0.05, 0.45)
    return _frame(image, g, _integer(g, 3, 14))


def _frame(image: Tensor, g: torch.Generator, border: int) -> Tensor:
    frame = torch.rand(3, 1, 1, generator=g).expand(3, SIDE, SIDE).clone()
    frame[:, border:-border, border:-border] = image[:, border:-border, border:-border]
    return frame


def _writing(g: torch.Generator) -> Tensor:
    """A printed page: lines of short dark dashes on a light ground, with a block or two."""
    image = _uniform(g, 0.75, 1.0) * torch.ones(3, SIDE, SIDE)
    rows, step = _integer(g, 10, 24), 20
    for row in range(rows):
        y = int(16 + row * (SIDE - 32) / rows)
        for x in range(16, SIDE - 16 - step, step):
            if _uniform(g, 0, 1) < 0.8:
                image[:, y : y + 4, x : x + _integer(g, 6, step - 3)] = 0.15
    return _rectangles(image, g, _integer(g, 0, 3), 0.1, 0.4)


def _books(g: torch.Generator) -> Tensor:
    """Two rows of book spines seen from the front."""
    image = torch.full((3, SIDE, SIDE), 0.05)
    for top in (0, SIDE // 2):
        x = 0
        while x < SIDE:
            width, gap = _integer(g, 6, 18), _integer(g, 8, 45)
            colour = torch.rand(3, 1, 1, generator=g) * _uniform(g, 0.3, 1.0)
            image[:, top + gap : top + SIDE // 2, x : x + width - 1] = colour
            label = top + gap + _integer(g, 10, 40)
            image[:, label : label + 8, x + 1 : x + width - 2] = torch.rand(3, 1, 1, generator=g)
            x += width
    return image


def _window(g: torch.Generator) -> Tensor:
    """What is seen through a window: bright sky over dim foliage, behind a frame with bars."""
    u, v = _grid()
    sky = 1 - 0.25 * v
    garden = 0.25 + 0.6 * _noise(g, 0.9)
    outside = torch.where(v + 0.3 * (_noise(g, 1.3) - 0.5) < _uniform(g, 0.3, 1.1), sky, garden)
    image = outside * torch.tensor([0.92, 0.97, 1.0])[:, None, None]
    bars = (u * _integer(g, 1, 3)) % 1 < 0.06
    return torch.where(bars | (u > 0.95) | (v < 0.05) | (v > 0.95) | ((v - 0.5).abs() < 0.015), 0.8, image)


def _blinds(g: torch.Generator) -> Tensor:
    _, v = _grid()
    slats = (v * _integer(g, 12, 28)) % 1
    return _grey(0.4 + 0.6 * slats + 0.1 * (_noise(g, 1.0) - 0.5))


def _panels(g: torch.Generator) -> Tensor:
    """Doors and drawer fronts: raised panels with dark gaps and a small handle."""
    u, v = _grid()
    columns, rows = _integer(g, 1, 3), _integer(g, 1, 4)
    x, y = (u * columns) % 1, (v * rows) % 1
    edge = torch.minimum(torch.minimum(x, 1 - x) / columns, torch.minimum(y, 1 - y) / rows)
    field = 0.75 + 0.15 * (_noise(g, 1.0, stretch=0.2) - 0.5)
    field = torch.where((edge > 0.05) & (edge < 0.06), 0.45, field)
    field = torch.where(edge < 0.006, 0.1, field)
    handle = (
        ((x - 0.85).abs() < 0.03) & ((y - 0.5).abs() < 0.08)
        if _integer(g, 0, 1)
        else (((x - 0.5).abs() < 0.1) & ((y - 0.15).abs() < 0.03))
    )
    return _grey(torch.where(handle, 0.25, field))


def _facade(g: torch.Generator) -> Tensor:
    """One storey, two to four windows wide, of a building's front."""
    u, v = _grid()
    columns = _integer(g, 2, 4)
    x, wide, tall = (u * columns) % 1, _uniform(g, 0.2, 0.36), _uniform(g, 0.22, 0.36)
    dx, dy = (x - 0.5).abs(), (v - 0.5).abs()
    wall = 0.72 + 0.25 * (_noise(g, 0.7) - 0.5)
    glass = 0.12 + 0.35 * torch.rand(columns, generator=g)[(u * columns).long()] * (0.5 + v)
    field = torch.where((dx < wide + 0.04) & (dy < tall + 0.03), 0.95, wall)
    field = torch.where((dx < wide) & (dy < tall), glass, field)
    field = torch.where((dx < 0.015) & (dy < tall), 0.9, field)
    return _grey(torch.where(v > 0.97, 0.5, field))


def _foliage(g: torch.Generator) -> Tensor:
    return _grey((_noise(g, _uniform(g, 0.3, 0.7)) * 1.6 - 0.3) ** 2)


def _clouds(g: torch.Generator) -> Tensor:
    return _grey((_noise(g, 1.7, stretch=1.8) * 1.8 - 0.6).clamp(0, 1))


PAINTERS: dict[str, tuple[Painter, int]] = {
    "plain": (_plain, 5),
    "stone": (_stone, 4),
    "speckle": (_speckle, 4),
    "wood": (_wood, 5),
    "planks": (_planks, 4),
    "tiles": (_tiles, 6),
    "bricks": (_bricks, 2),
    "checker": (_checker, 2),
    "stripes": (_stripes, 5),
    "plaid": (_plaid, 3),
    "fabric": (_fabric, 4),
    "ornament": (_ornament, 4),
    "picture": (_picture, 14),
    "writing": (_writing, 4),
    "books": (_books, 5),
    "window": (_window, 4),
    "blinds": (_blinds, 2),
    "panels": (_panels, 6),
    "facade": (_facade, 7),
    "foliage": (_foliage, 4),
    "clouds": (_clouds, 3),
}


def _index() -> dict[str, range]:
    ranges, start = {}, 0
    for kind, (_, count) in PAINTERS.items():
        ranges[kind] = range(start, start + count)
        start += count
    return ranges


KINDS = _index()  # kind -> the numbers of its textures in the atlas


@lru_cache(maxsize=2)
def atlas(device: torch.device) -> Tensor:
    """All textures with their mip levels, flat: uint8 (3, texels), level after level."""
    images = []
    for kind, (paint, count) in PAINTERS.items():
        for number in range(count):
            generator = torch.Generator().manual_seed(1009 * KINDS[kind].start + number)
            images.append(paint(generator))
    level = torch.stack(images)
    levels = []
    for _ in range(LEVELS):
        levels.append((level * 255).round().clamp(0, 255).to(torch.uint8).transpose(0, 1).reshape(3, -1))
        level = F.avg_pool2d(level, 2)
    return torch.cat(levels, 1).to(device)


@lru_cache(maxsize=2)
def _layout(device: torch.device) -> tuple[Tensor, Tensor]:
    count = sum(number for _, number in PAINTERS.values())
    sides = torch.tensor([SIDE >> level for level in range(LEVELS)])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.cumsum(count * sides**2, 0)[:-1]])
    return sides.to(device), starts.to(device)


def sample(texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
    """Bilinear texels, wrapped: texture int64, u, v (repeats) and mip level float, all (N,) -> (3, N) in 0..1."""
    table = atlas(u.device)
    sides, starts = _layout(u.device)
    step = level.round().clamp(0, LEVELS - 1).long()
    side = sides[step]
    base = starts[step] + texture * side * side
    scale = side.to(u.dtype)
    x, y = (u - u.floor()) * scale - 0.5, (v - v.floor()) * scale - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    left, top = x0.long(), y0.long()
    last = side - 1  # sides are powers of two: "and" wraps
    columns = (left & last, (left + 1) & last)
    rows = (base + (top & last) * side, base + ((top + 1) & last) * side)
    texels = [[table.index_select(1, row + column).float() for column in columns] for row in rows]
    upper, lower = (torch.lerp(a, b, fx) for a, b in texels)
    return torch.lerp(upper, lower, fy) / 255
