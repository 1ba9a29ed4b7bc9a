"""Additive masks for causal attention over padded or partial keys.

Knows relative positions and windows. Does not know sequences or where keys lie.
"""

from __future__ import annotations

import torch

MASKED = float("-inf")

TILE = 128
"""Query rows of one masked call: bounds the mask, and skips keys that no row of the tile may see."""


class Staircases:
    """Masks of tiles of chunks, kept between steps: they depend on relative positions alone."""

    def __init__(self) -> None:
        self._by_window: dict[int | None, torch.Tensor] = {}

    def tile(self, rows: int, before: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """The mask (rows, before + rows) of query rows that follow `before` keys.

        A cut of one matrix per window, so that tiles of all sequences and
        layers share it.

        Args:
            like: gives dtype and device.
        """
        staircase = self._by_window.get(window)
        if staircase is None or staircase.shape[1] - TILE < before or staircase.dtype != like.dtype:
            reach = 1 << max(before, 256).bit_length()
            staircase = self._by_window[window] = _staircase(reach, window, like)
        origin = staircase.shape[1] - TILE
        return staircase[:rows, origin - before : origin + rows]


def length_mask(lengths: torch.Tensor, slots: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Mask (sequences, 1, 1, slots): the last of `lengths` tokens sees its own keys, within the window."""
    position = torch.arange(slots, device=like.device)
    hidden = position >= lengths[:, None]
    if window is not None:
        hidden |= position < lengths[:, None] - window
    return _additive(hidden, like)[:, None, None, :]


def reach_mask(
    reach: torch.Tensor, position: int, first_key: int, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """Mask (rows, keys from `first_key` to the largest reach) of rows that see beyond themselves.

    Args:
        reach: int64 (rows,) on the host, keys that each row sees, counted from key 0.
        position: of the first row; the others follow it.
        window: as in `StepAttention.attend`: it ends what a row sees before itself.
    """
    key = torch.arange(first_key, int(reach.max()))
    hidden = key >= reach[:, None]
    if window is not None:
        rows = torch.arange(position, position + len(reach))
        hidden |= key <= rows[:, None] - window
    return _additive(hidden.to(like.device), like)


def _staircase(reach: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(TILE, reach + TILE): row r sees relative keys r - window + 1 to r; column `reach` is key 0."""
    row = torch.arange(TILE, device=like.device)[:, None]
    relative = torch.arange(-reach, TILE, device=like.device)
    hidden = relative > row
    if window is not None:
        hidden |= relative <= row - window
    return _additive(hidden, like)


def _additive(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, MASKED)
