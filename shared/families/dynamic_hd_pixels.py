"""Pixels of "dynamic HD" tiles, in torch: bit by bit those of transformers' Phi4MultimodalImageProcessor.

That processor works through torchvision alone, and worker processes have no torch, so
this runs at the start of the tower, on the CPU's kernels or on the tower's device.
Knows filters, padding and masks. How many tiles there are is settled in `dynamic_hd.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shared.families.dynamic_hd import Placement, Tiling
from shared.families.frames import normalise, resize_frames, to_channels_first
from shared.families.video_settings import FrameRecipe

_WHITE = 255


def tile_pixels(
    picture: npt.NDArray[np.uint8],
    placement: Placement,
    tiling: Tiling,
    recipe: FrameRecipe,
    device: torch.device,
) -> torch.Tensor:
    """Resizes a picture, pads it with white, normalises it and cuts it, a copy of the whole in front.

    Args:
        picture: uint8 (height, width, 3).
        recipe: `resample` is the filter of the copy alone: the picture itself is always
            resized by the processor's own default, bilinear.

    Returns:
        float32 (1 + tiles, 3, side, side) on `device`.
    """
    levels = resize_frames(to_channels_first(picture[np.newaxis], device), placement.size, "bilinear")
    (height, width), (whole_height, whole_width) = placement.size, placement.whole
    padded = functional.pad(levels, (0, whole_width - width, 0, whole_height - height), value=_WHITE)
    pixels = normalise(padded.to(device), recipe)
    return torch.cat([_copy(pixels, tiling.side, recipe), _tiles(pixels[0], tiling.side)])


def tile_masks(placement: Placement, tiling: Tiling, device: torch.device) -> torch.Tensor:
    """Which patches are not all padding: bool (1 + tiles, patches, patches), the whole in front."""
    side = tiling.patches
    rows, columns = (length // tiling.side for length in placement.whole)
    seen = torch.zeros(1, rows * side, columns * side, dtype=torch.bool, device=device)
    seen[:, : placement.seen[0], : placement.seen[1]] = True
    whole = torch.ones(1, side, side, dtype=torch.bool, device=device)
    return torch.cat([whole, _tiles(seen, side)[:, 0]])


def _copy(pixels: torch.Tensor, side: int, recipe: FrameRecipe) -> torch.Tensor:
    """Numbers (1, 3, height, width) to (1, 3, side, side), without anti-aliasing."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return functional.interpolate(pixels, size=(side, side), mode=recipe.resample, align_corners=False)


def _tiles(values: torch.Tensor, side: int) -> torch.Tensor:
    """(channels, rows x side, columns x side) to (rows x columns, channels, side, side)."""
    channels, height, width = values.shape
    cut = values.reshape(channels, height // side, side, width // side, side)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)
