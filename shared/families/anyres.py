"""Any resolution by tiles, as LLaVA-NeXT and LLaVA-OneVision cut pictures: the arithmetic of sizes.

A picture is seen twice: whole, squeezed into one tile, and larger, fitted into the
best of a list of canvases, each a rectangle of tiles. The rows of the canvas that
show only padding are dropped, and each line of rows ends with a newline row.

Knows sizes and counts. Knows neither pixels nor weights, and imports neither torch
nor transformers. The rules are those of transformers' `select_best_resolution`
(image_processing_utils.py) and `pack_image_features` and `unpad_image`
(modeling_llava_next.py, modeling_llava_onevision.py), release 5.23: one row more
or less would shift every later row, so even the roundings are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Size = tuple[int, int]
"""Height and width."""

_DECIMALS = 7
_TOLERATED = 1.1
"""Canvases up to this factor too fine, along a side, are left as they are."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a picture's rows are made of those of its tiles.

    Attributes:
        tiles: tiles of the canvas along height and width.
        top: lines of patches of the canvas that are dropped above, and as many below.
        left: columns of patches that are dropped on the left, and as many on the right.
        kept: lines and columns that are left.
        shrunk: lines and columns after shrinking; as `kept` where nothing is shrunk.
        whole_rows: rows of the tile that shows the whole picture.
    """

    tiles: Size
    top: int
    left: int
    kept: Size
    shrunk: Size
    whole_rows: int

    @property
    def tile_count(self) -> int:
        """Tiles that the tower sees, the whole picture's included."""
        return 1 + self.tiles[0] * self.tiles[1]

    @property
    def row_count(self) -> int:
        """Rows of the picture; a newline row ends each line."""
        lines, columns = self.shrunk
        return self.whole_rows + lines * (columns + 1)


@dataclass(frozen=True, slots=True)
class Canvases:
    """The canvases of a checkpoint.

    Attributes:
        sizes: of each, in pixels; of equal ones the first is taken.
        tile_side: of a tile, in pixels; divides all sizes.
        patch_side: patches along a tile's side.
        most_tiles: canvases with more patches than so many tiles have are shrunk; None: never.
    """

    sizes: tuple[Size, ...]
    tile_side: int
    patch_side: int
    most_tiles: int | None = None

    def best(self, picture: Size) -> Size:
        """The canvas on which a picture keeps most of its pixels, and of several the least padded."""

        def worth(canvas: Size) -> tuple[int, int]:
            scale = min(canvas[1] / picture[1], canvas[0] / picture[0])
            filled = int(picture[1] * scale) * int(picture[0] * scale)
            useful = min(filled, picture[0] * picture[1])
            return useful, useful - canvas[0] * canvas[1]

        return max(self.sizes, key=worth)

    def packing(self, picture: Size) -> Packing:
        """How the rows of a picture of this height and width, in pixels, are made."""
        height, width = self.best(picture)
        tiles = height // self.tile_side, width // self.tile_side
        canvas = tiles[0] * self.patch_side, tiles[1] * self.patch_side
        top, left = _padding(picture, canvas)
        kept = canvas[0] - 2 * top, canvas[1] - 2 * left
        return Packing(tiles, top, left, kept, self._shrunk(kept), self.patch_side**2)

    def _shrunk(self, kept: Size) -> Size:
        if self.most_tiles is None:
            return kept
        ratio = math.sqrt(kept[0] * kept[1] / (self.most_tiles * self.patch_side**2))
        if ratio <= _TOLERATED:
            return kept
        return int(kept[0] // ratio), int(kept[1] // ratio)


def canvases(
    sizes: Iterable[Iterable[int]], tile_side: int, patch_side: int, most_tiles: int | None
) -> Canvases:
    """Canvases from a configuration's `image_grid_pinpoints`.

    Raises:
        ValueError: there are none, or a side is not made of whole tiles.
    """
    found = tuple(tuple(map(int, size)) for size in sizes)
    for size in found:
        if len(size) != 2 or any(side < 1 or side % tile_side for side in size):
            raise ValueError(f"a canvas of {list(size)} is not made of tiles of {tile_side}")
    if not found:
        raise ValueError("there are no canvases")
    return Canvases(tuple((size[0], size[1]) for size in found), tile_side, patch_side, most_tiles)


def _padding(picture: Size, canvas: Size) -> Size:
    """Lines above and columns on the left of the canvas, in patches, that show nothing of the picture."""
    if picture[1] / picture[0] > canvas[1] / canvas[0]:
        filled = int(round(picture[0] * (canvas[1] / picture[1]), _DECIMALS))
        return (canvas[0] - filled) // 2, 0
    filled = int(round(picture[1] * (canvas[0] / picture[0]), _DECIMALS))
    return 0, (canvas[1] - filled) // 2
