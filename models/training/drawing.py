"""Draws a scene: anti-aliased shapes and digits on a background, then blur, noise and JPEG artefacts.

Knows nothing about questions or patches. Every pixel follows from the scene alone.
"""

import io
import math
import random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from models.training.scenes import Background, Number, Scene, Shade, Thing

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]

_OVERSAMPLING = 2
_INK: dict[str, Rgb] = {
    "red": (215, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 225, 40),
    "green": (35, 160, 65),
    "blue": (35, 85, 220),
    "purple": (145, 50, 175),
    "black": (15, 15, 18),
    "white": (250, 250, 250),
}
_PAPER: dict[Shade, int] = {"light": 222, "middle": 132, "dark": 48}
_GREYNESS = 12
_PATTERN_CELLS = 12


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of its own width and height."""
    canvas = _paper(scene)
    brush = random.Random(scene.background.seed)
    large = canvas.resize(
        (scene.width * _OVERSAMPLING, scene.height * _OVERSAMPLING), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(large)
    for thing in scene.things:
        _draw_thing(pen, thing, scene, _ink(thing.colour, brush))
    if scene.number is not None:
        _draw_number(large, scene.number, scene, _ink(scene.number.colour, brush))
    return _spoil(large.resize(canvas.size, Image.Resampling.BOX), scene)


def digit_places(scene: Scene) -> list[tuple[int, float, float, float]]:
    """Each printed digit with its centre and width, as fractions of the picture."""
    number = scene.number
    if number is None:
        return []
    font = _font(number.height * scene.scale)
    start = -font.getlength(number.text) / 2
    turn = math.radians(number.angle)
    places = []
    for index, digit in enumerate(number.text):
        wide = font.getlength(digit)
        along = start + font.getlength(number.text[:index]) + wide / 2
        x = number.x + along * math.cos(turn) / scene.width
        y = number.y - along * math.sin(turn) / scene.height
        places.append((int(digit), min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0), wide / scene.width))
    return places


def _font(height: float) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface with digits of this height in pixels."""
    font = ImageFont.load_default(size=height * 1.36)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _ink(colour: str, brush: random.Random) -> Rgb:
    red, green, blue = (min(255, max(0, channel + brush.randint(-14, 14))) for channel in _INK[colour])
    return red, green, blue


def _paper(scene: Scene) -> Image.Image:
    background, size = scene.background, (scene.width, scene.height)
    pattern = np.random.default_rng(background.seed)
    base = np.array(_paper_colour(background), dtype=np.float32)
    shift = {"flat": 0.0, "gradient": 22.0, "stripes": 9.0, "specks": 16.0}[background.kind]
    cells = _pattern(background, pattern)[..., None] * shift + base
    small = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8), "RGB")
    smooth = background.kind in ("gradient", "specks")
    return small.resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)


def _paper_colour(background: Background) -> tuple[float, float, float]:
    level = _PAPER[background.shade]
    red, green, blue = (level + _GREYNESS * tint for tint in background.tint)
    return red, green, blue


def _pattern(background: Background, pattern: np.random.Generator) -> npt.NDArray[np.float32]:
    """A small field in -1..1 that is stretched over the picture."""
    cells = _PATTERN_CELLS
    if background.kind == "flat":
        return np.zeros((1, 1), dtype=np.float32)
    if background.kind == "specks":
        return pattern.uniform(-1, 1, (2 * cells, 2 * cells)).astype(np.float32)
    ramp = np.linspace(-1, 1, cells, dtype=np.float32)
    if background.kind == "stripes":
        ramp = np.where(np.arange(cells) % 2 == 0, 1.0, -1.0).astype(np.float32)
    field = np.broadcast_to(ramp, (cells, cells))
    return field if pattern.random() < 0.5 else field.T


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, scene: Scene, ink: Rgb) -> None:
    x, y = thing.x * scene.width * _OVERSAMPLING, thing.y * scene.height * _OVERSAMPLING
    radius = thing.size * scene.scale * _OVERSAMPLING / 2
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif thing.shape == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=round(radius * 0.42))
    else:
        pen.polygon([(x + radius * px, y + radius * py) for px, py in _outline(thing)], fill=ink)


def _outline(thing: Thing) -> Points:
    """The corners of a shape around the origin, in radii, turned by its angle."""
    turn = math.radians(thing.angle)
    sine, cosine = math.sin(turn), math.cos(turn)
    corners = {"square": _square, "triangle": _triangle, "star": _star, "cross": _cross}[thing.shape]()
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in corners]


def _square() -> Points:
    return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]


def _triangle() -> Points:
    return [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]


def _star() -> Points:
    radii = (1.08, 0.46)
    return [
        (radii[i % 2] * math.sin(math.pi * i / 5), -radii[i % 2] * math.cos(math.pi * i / 5))
        for i in range(10)
    ]


def _cross() -> Points:
    arm = 0.3
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)]
    return [*quarter, *[(-x, -y) for x, y in quarter]]


def _draw_number(canvas: Image.Image, number: Number, scene: Scene, ink: Rgb) -> None:
    """Prints the number upright on a mask, turns the mask, and inks the canvas through it."""
    height = number.height * scene.scale * _OVERSAMPLING
    font = _font(height)
    stroke = round(number.weight * height / 2)
    mask = Image.new("L", canvas.size)
    centre = (number.x * canvas.width, number.y * canvas.height)
    ImageDraw.Draw(mask).text(centre, number.text, fill=255, font=font, anchor="mm", stroke_width=stroke)
    mask = mask.rotate(number.angle, Image.Resampling.BILINEAR, center=centre)
    canvas.paste(ink, (0, 0), mask)


def _spoil(picture: Image.Image, scene: Scene) -> Image.Image:
    spoiling = scene.spoiling
    if spoiling.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(spoiling.blur * scene.scale / 128))
    if spoiling.noise:
        grain = np.random.default_rng(scene.background.seed + 1)
        pixels = np.asarray(picture, dtype=np.float32)
        pixels = pixels + spoiling.noise * grain.standard_normal(pixels.shape, dtype=np.float32)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
    if spoiling.jpeg is not None:
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=spoiling.jpeg)
        picture = Image.open(encoded).convert("RGB")
    return picture
