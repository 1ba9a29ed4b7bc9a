"""Rows of a picture out of the rows of its tiles, in torch; see `anyres.py` for which and why.

Knows tensors. Does not know pixels, towers nor families. The order of rows, the place
of the newline rows and the way of shrinking are those of `pack_image_features` in
transformers' modeling_llava_next.py and modeling_llava_onevision.py.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from shared.families.anyres import Packing


def pack_tiles(tiles: torch.Tensor, packing: Packing, newline: torch.Tensor) -> torch.Tensor:
    """Puts tiles together.

    Args:
        tiles: (packing.tile_count, patches, hidden): the whole picture's, then the canvas's line by line.
        newline: (hidden,), the row that ends each line.

    Returns:
        (packing.row_count, hidden).
    """
    whole, canvas = tiles[0], _canvas(tiles[1:], packing)
    lines, columns = packing.kept
    canvas = canvas[packing.top : packing.top + lines, packing.left : packing.left + columns]
    if packing.shrunk != packing.kept:
        canvas = resize_plane(canvas[None], packing.shrunk)[0]
    ends = newline.expand(len(canvas), 1, -1)
    return torch.cat([whole, torch.cat([canvas, ends], dim=1).flatten(0, 1)])


def resize_plane(plane: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes (items, lines, columns, hidden) to `size` lines and columns, bilinearly."""
    resized = functional.interpolate(plane.permute(0, 3, 1, 2).contiguous(), size=size, mode="bilinear")
    return resized.permute(0, 2, 3, 1)


def _canvas(tiles: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(tiles, patches, hidden) to (lines, columns, hidden)."""
    down, across = packing.tiles
    side = round(packing.whole_rows**0.5)
    lines = tiles.reshape(down, across, side, side, -1).transpose(1, 2)
    return lines.reshape(down * side, across * side, -1)
