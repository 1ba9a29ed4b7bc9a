"""Pixels of frames to patches in the order of the Qwen-VL families, and parts of a video.

Knows the order in which such towers read patches. Does not know any family.
"""

from __future__ import annotations

import torch


def cut_patches(
    pixels: torch.Tensor, patch_size: int, temporal_patch_size: int, merge_size: int
) -> torch.Tensor:
    """Frames to one row for each patch, those that are merged later next to each other.

    A patch is `temporal_patch_size` frames deep; where frames are missing for the
    last one, the last frame is repeated.

    Args:
        pixels: (frames, channels, height, width), both sides multiples of
            `patch_size` x `merge_size`.

    Returns:
        (patches, channels x temporal_patch_size x patch_size x patch_size): by time,
        then by merged rows and columns, then by those within a merged patch. Each
        patch is laid out by channel, time, row and column.
    """
    missing = -len(pixels) % temporal_patch_size
    if missing:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    frames, channels, height, width = pixels.shape
    side = patch_size * merge_size
    cut = pixels.reshape(
        frames // temporal_patch_size,
        temporal_patch_size,
        channels,
        height // side,
        merge_size,
        patch_size,
        width // side,
        merge_size,
        patch_size,
    )
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(
        -1, channels * temporal_patch_size * patch_size * patch_size
    )
