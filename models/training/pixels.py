"""From a picture to the numbers the tower reads, and to what its patches show.

The sizes here are written into the checkpoint's preprocessor configuration; `patches` equals, pixel for
pixel, what `Qwen2VLImageProcessorPil` makes of a picture under it (a test holds the two together).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.training.drawing import digit_places
from models.training.scenes import COLOURS, SHAPES, Scene

PATCH = 8
MERGE = 2
CELL = PATCH * MERGE
MIN_PIXELS = 7168
MAX_PIXELS = 10000
MOST_CELLS = 36
"""The largest grid that the drawn pictures' aspect ratios give, in cells of merged patches."""
NORMAL_MEAN = (0.5, 0.5, 0.5)
NORMAL_STD = (0.5, 0.5, 0.5)

KINDS = 1 + len(SHAPES) + 10
"""What a cell can show: nothing, a shape, or a digit."""
INKS = 1 + len(COLOURS)


@dataclass(frozen=True)
class CellLabels:
    """Per cell: the kind and the colour it shows, whether a centre lies in it, and where that centre is."""

    kind: npt.NDArray[np.int64]
    colour: npt.NDArray[np.int64]
    centre: npt.NDArray[np.float32]
    place: npt.NDArray[np.float32]


def grid_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of cells of a picture of this size."""
    tall, wide = smart_resize(height, width, CELL, MIN_PIXELS, MAX_PIXELS)
    return tall // CELL, wide // CELL


def patches(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Patches in the processor's order, before rescaling: (patches, channels * PATCH * PATCH)."""
    rows, columns = grid_of(*picture.size)
    resized = picture.convert("RGB").resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized).reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    return pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns * MERGE * MERGE, 3 * PATCH * PATCH)


def patch_coordinates(rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Row and column of every patch, in the processor's order."""
    row, column, down, across = np.indices((rows, columns, MERGE, MERGE))
    return np.stack([row * MERGE + down, column * MERGE + across], axis=-1).reshape(-1, 2)


def cell_labels(scene: Scene) -> CellLabels:
    """What the drawing program knows about every cell."""
    rows, columns = grid_of(scene.width, scene.height)
    labels = CellLabels(
        np.zeros(rows * columns, dtype=np.int64),
        np.zeros(rows * columns, dtype=np.int64),
        np.zeros(rows * columns, dtype=np.float32),
        np.zeros((rows * columns, 2), dtype=np.float32),
    )
    down = (np.arange(rows * columns) // columns + 0.5) / rows
    across = (np.arange(rows * columns) % columns + 0.5) / columns
    for kind, colour, x, y, wide, tall in _marks(scene):
        inside = (np.abs(across - x) < wide / 2) & (np.abs(down - y) < tall / 2)
        centre = min(rows - 1, int(y * rows)) * columns + min(columns - 1, int(x * columns))
        inside[centre] = True
        labels.kind[inside] = kind
        labels.colour[inside] = colour
        labels.place[inside] = (x, y)
        labels.centre[centre] = 1.0
    return labels


def _marks(scene: Scene) -> list[tuple[int, int, float, float, float, float]]:
    """Kind, colour, centre and extent (fractions of the picture) of everything drawn."""
    across, down = scene.scale / scene.width, scene.scale / scene.height
    marks = [
        (
            1 + SHAPES.index(thing.shape),
            1 + COLOURS.index(thing.colour),
            thing.x,
            thing.y,
            thing.size * across,
            thing.size * down,
        )
        for thing in scene.things
    ]
    if scene.number is not None:
        ink, tall = 1 + COLOURS.index(scene.number.colour), scene.number.height * down
        marks += [
            (1 + len(SHAPES) + digit, ink, x, y, wide, tall) for digit, x, y, wide in digit_places(scene)
        ]
    return marks
