"""Phi's "dynamic HD": a picture as square tiles of its own resolution, and a small copy of the whole.

Knows sizes: how many tiles, where the picture lies in them, how many rows come out. The
rules are those of transformers' Phi4MultimodalImageProcessor. Knows no pixels, and
imports no torch, which worker processes lack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from shared.errors import BadMediaError

LEAST_SIDE = 10
"""Pixels of a resized picture's shorter side; thinner pictures are refused."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Square tiles of a model.

    Attributes:
        side: pixels.
        patch: pixels of a patch's side.
    """

    side: int
    patch: int

    @property
    def patches(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    @property
    def cells(self) -> int:
        """Rows along a side: patches are merged two by two."""
        return -(-self.patches // 2)

    def row_count(self, cells: tuple[int, int]) -> int:
        """Rows of a picture: its lines and the whole's, a row for each line's end, one between the two."""
        height, width = cells
        return height * (width + 1) + 1 + self.cells * (self.cells + 1)

    def most_rows(self, tiles: int) -> int:
        """The most rows of a picture of up to so many tiles: those of a column of them."""
        return self.row_count((tiles * self.cells, self.cells))

    def count_tiles(self, size: tuple[int, int], most: int) -> tuple[int, int]:
        """Tiles for a picture, rows and columns.

        Args:
            size: its height and width in pixels.
            most: most tiles.
        """
        height, width = size
        rows, columns = math.ceil(height / self.side), math.ceil(width / self.side)
        return (rows, columns) if rows * columns <= most else self._closest_grid(size, most)

    def place(self, size: tuple[int, int], tiles: tuple[int, int]) -> Placement:
        """Where a picture of height and width `size` lies in so many rows and columns of tiles.

        Raises:
            BadMediaError: it is too thin.
        """
        (height, width), (rows, columns) = size, tiles
        whole_height, whole_width = rows * self.side, columns * self.side
        by_width, by_height = whole_width / width, whole_height / height
        if by_width < by_height:
            new_height, new_width = int(height * by_width), whole_width
        else:
            new_height, new_width = whole_height, int(width * by_height)
        if min(new_height, new_width) < LEAST_SIDE:
            raise BadMediaError(
                f"the picture is {width} x {height} pixels, which is too thin: {new_width} x {new_height}"
                " remain"
            )
        seen = (
            rows * self.patches - (whole_height - new_height) // self.patch,
            columns * self.patches - (whole_width - new_width) // self.patch,
        )
        cells = (self._cells_of(seen[0]), self._cells_of(seen[1]))
        return Placement((new_height, new_width), (whole_height, whole_width), seen, cells)

    def _cells_of(self, seen: int) -> int:
        """Cells along a side of several tiles whose first patch is among the first `seen` patches."""
        tiles, rest = divmod(seen, self.patches)
        return tiles * self.cells + -(-rest // 2)

    def _closest_grid(self, size: tuple[int, int], most: int) -> tuple[int, int]:
        """The rows and columns whose shape is closest to the picture's; of equal ones the more, for large
        pictures."""
        height, width = size
        shape, area = width / height, width * height
        best, best_distance = (1, 1), math.inf
        for columns, rows in _grids(most):
            distance = abs(shape - columns / rows)
            larger = distance == best_distance and area > 0.5 * self.side * self.side * columns * rows
            if distance < best_distance or larger:
                best, best_distance = (rows, columns), distance
        return best


@dataclass(frozen=True, slots=True)
class Placement:
    """A picture in its tiles, at the upper left corner. All are heights and widths.

    Attributes:
        size: pixels of the resized picture.
        whole: pixels of the tiles.
        seen: patches that are not all padding.
        cells: rows of the model along the picture, without those of lines' ends.
    """

    size: tuple[int, int]
    whole: tuple[int, int]
    seen: tuple[int, int]
    cells: tuple[int, int]


@lru_cache
def _grids(most: int) -> tuple[tuple[int, int], ...]:
    """Columns and rows of up to `most` tiles, the fewest first."""
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
