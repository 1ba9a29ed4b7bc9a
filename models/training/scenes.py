"""What a picture shows: shapes or a printed number, their colours and places, and how the picture is spoiled.

Knows nothing about pixels or sentences. Coordinates are fractions of the picture's width and height;
sizes are fractions of its scale, the square root of its area, so that they mean the same for every
aspect ratio. A scene is a pure function of its random generator.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
MOST_SHAPES = 5
CLEARLY_APART = 0.16
"""Two shapes are beside (or above) one another only when their centres differ by this much on that axis."""

Shade = Literal["light", "middle", "dark"]
BackgroundKind = Literal["flat", "gradient", "stripes", "specks"]

_ASPECTS = ((1, 1), (1, 1), (1, 1), (4, 3), (4, 3), (3, 4), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
_SHADES: tuple[Shade, ...] = ("light", "light", "middle", "dark")
_BACKGROUNDS: tuple[BackgroundKind, ...] = ("flat", "flat", "gradient", "stripes", "specks")


@dataclass(frozen=True)
class Thing:
    """One shape. `size` is its diameter, `angle` a rotation in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Number:
    """One printed number. `height` is the height of its digits, `weight` how bold they are."""

    text: str
    colour: str
    x: float
    y: float
    height: float
    angle: float
    weight: float


@dataclass(frozen=True)
class Background:
    """What lies behind. `tint` moves the hue, `seed` fixes the pattern."""

    kind: BackgroundKind
    shade: Shade
    tint: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Spoiling:
    """What happens to a finished drawing: noise (standard deviation of 255), blur (pixels), JPEG quality."""

    noise: float
    blur: float
    jpeg: int | None


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; it shows either things or one number. Width and height in pixels."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]
    number: Number | None
    spoiling: Spoiling

    @property
    def scale(self) -> float:
        return math.sqrt(self.width * self.height)


def shapes_scene(rng: random.Random, count: int | None = None) -> Scene:
    """A scene of one to five shapes; no two of up to three shapes are alike in shape and colour."""
    width, height = _picture_size(rng)
    background = _background(rng)
    total = count if count is not None else rng.choices((1, 2, 3, 4, 5), (15, 28, 30, 14, 13))[0]
    kinds = _kinds(rng, total, background.shade)
    places = _places(rng, total, width, height)
    things = tuple(
        Thing(shape, colour, x, y, size, rng.uniform(-12, 12))
        for (shape, colour), (x, y, size) in zip(kinds, places, strict=True)
    )
    return Scene(width, height, background, things, None, _spoiling(rng))


def number_scene(rng: random.Random) -> Scene:
    """A scene of one printed number of one to three digits, without leading zeros."""
    width, height = _picture_size(rng)
    background = _background(rng)
    digits = rng.choice((1, 2, 2, 3, 3))
    text = str(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
    tallest = min(0.62, 0.9 * width / _scale(width, height) / (0.86 * digits))
    tall = rng.uniform(min(0.26, tallest), max(0.26, min(tallest, 0.8 * height / _scale(width, height))))
    half_width = 0.43 * tall * digits * _scale(width, height) / width
    half_height = 0.62 * tall * _scale(width, height) / height
    colour = rng.choice(visible_colours(background.shade))
    number = Number(
        text,
        colour,
        _between(rng, half_width + 0.02),
        _between(rng, half_height + 0.02),
        tall,
        rng.uniform(-7, 7),
        rng.uniform(0.0, 0.06),
    )
    return Scene(width, height, background, (), number, _spoiling(rng))


def visible_colours(shade: Shade) -> tuple[str, ...]:
    """The colours that stand out from a background of this shade."""
    hidden = {"light": {"white"}, "middle": set[str](), "dark": {"black"}}[shade]
    return tuple(colour for colour in COLOURS if colour not in hidden)


def _picture_size(rng: random.Random) -> tuple[int, int]:
    across, down = rng.choice(_ASPECTS)
    longer = rng.choices((rng.randint(64, 128), rng.randint(128, 256), rng.randint(256, 512)), (4, 5, 2))[0]
    unit = longer / max(across, down)
    return max(48, round(across * unit)), max(48, round(down * unit))


def _background(rng: random.Random) -> Background:
    tint = (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1))
    return Background(rng.choice(_BACKGROUNDS), rng.choice(_SHADES), tint, rng.getrandbits(32))


def _spoiling(rng: random.Random) -> Spoiling:
    noise = rng.choice((0.0, 0.0, rng.uniform(1, 5), rng.uniform(4, 12)))
    blur = rng.choice((0.0, 0.0, 0.0, rng.uniform(0.3, 0.8)))
    jpeg = rng.choice((None, None, rng.randint(75, 95), rng.randint(45, 80)))
    return Spoiling(noise, blur, jpeg)


def _kinds(rng: random.Random, total: int, shade: Shade) -> list[tuple[str, str]]:
    """Shape and colour of each thing: all different up to three; of more, often many alike."""
    colours = visible_colours(shade)
    pairs = [(shape, colour) for shape in SHAPES for colour in colours]
    alike = 0.0 if total == 1 else (0.12 if total <= 3 else 0.4)
    if rng.random() < alike:
        return [rng.choice(pairs)] * total
    if total > 3 and rng.random() < 0.5:
        few = rng.sample(pairs, 2)
        return [rng.choice(few) for _ in range(total)]
    if total == 3 and rng.random() < 0.15:
        few = rng.sample(pairs, 2)
        return [few[0], few[0], few[1]]
    if rng.random() < 0.3:
        shared = rng.choice(SHAPES)
        return [(shared, colour) for colour in rng.sample(colours, total)]
    return rng.sample(pairs, total)


def _places(rng: random.Random, total: int, width: int, height: int) -> list[tuple[float, float, float]]:
    """Centres and sizes, apart from one another: along a row, along a column, or scattered."""
    biggest = {1: 0.46, 2: 0.36, 3: 0.29, 4: 0.25, 5: 0.23}[total]
    while True:
        layout = rng.choice(("row", "column", "scatter")) if 1 < total <= 3 else "scatter"
        places = _try_places(rng, total, width, height, biggest, layout)
        if places is not None:
            return places


def _try_places(
    rng: random.Random, total: int, width: int, height: int, biggest: float, layout: str
) -> list[tuple[float, float, float]] | None:
    scale = _scale(width, height)
    places: list[tuple[float, float, float]] = []
    slots = rng.sample(range(total), total)
    for _ in range(total * 12):
        size = rng.uniform(0.165 if total > 3 else 0.18, biggest)
        half_x, half_y = 0.54 * size * scale / width, 0.54 * size * scale / height
        x, y = _between(rng, half_x), _between(rng, half_y)
        slot = (slots[len(places)] + rng.uniform(0.3, 0.7)) / total
        if layout == "row":
            x = min(max(slot, half_x), 1 - half_x)
        elif layout == "column":
            y = min(max(slot, half_y), 1 - half_y)
        if all(_free(x, y, size, other, width / scale, height / scale) for other in places):
            places.append((x, y, size))
        if len(places) == total:
            return places
    return None


def _free(
    x: float, y: float, size: float, other: tuple[float, float, float], wide: float, tall: float
) -> bool:
    distance = math.hypot((x - other[0]) * wide, (y - other[1]) * tall)
    return distance > 0.56 * (size + other[2]) + 0.03


def _between(rng: random.Random, margin: float) -> float:
    return 0.5 if margin >= 0.5 else rng.uniform(margin, 1 - margin)


def _scale(width: int, height: int) -> float:
    return math.sqrt(width * height)
