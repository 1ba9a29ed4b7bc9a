"""Dynamic time warping: which rows of a recording belong to which token, in order.

Knows matrices. Does not know what they were made of.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BOTH, _NEXT_TOKEN, _NEXT_ROW = 0, 1, 2


def first_rows(cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The first row of each token on the cheapest path, along which neither goes back.

    The recurrence, its order among equals and its precision are those of transformers'
    `_dynamic_time_warping`. Cells of one diagonal do not depend on each other, so each diagonal
    is computed at once.

    Args:
        cost: float64 (tokens, rows), at least one of each.

    Returns:
        int64 (tokens,), not falling.
    """
    tokens, rows = cost.shape
    flat = np.ascontiguousarray(cost).ravel()
    # Cell (i, j) of the sums is in entry i of diagonal i + j; tokens and rows count from 1.
    before, last = (np.full(tokens + 1, np.inf, np.float32) for _ in range(2))
    before[0] = 0
    steps = np.full((tokens + rows + 1, tokens + 1), _NEXT_ROW, np.int8)
    for diagonal in range(2, tokens + rows + 1):
        first, end = max(1, diagonal - rows), min(tokens, diagonal - 1) + 1
        both, token, row = before[first - 1 : end - 1], last[first - 1 : end - 1], last[first:end]
        takes_both = (both < token) & (both < row)
        takes_token = ~takes_both & (token < both) & (token < row)
        best = np.where(takes_both, both, np.where(takes_token, token, row))
        steps[diagonal, first:end] = np.where(
            takes_both, _BOTH, np.where(takes_token, _NEXT_TOKEN, _NEXT_ROW)
        )
        index = np.arange(first, end)
        here = np.full(tokens + 1, np.inf, np.float32)
        here[first:end] = flat[(index - 1) * rows + (diagonal - index - 1)] + best.astype(np.float64)
        before, last = last, here
    return _walked_back(steps, tokens, rows)


def _walked_back(steps: npt.NDArray[np.int8], tokens: int, rows: int) -> npt.NDArray[np.int64]:
    found = np.zeros(tokens, np.int64)
    token, row = tokens, rows
    while token > 0:
        # Walked from the end, so that the first row of a token is the last that is written.
        found[token - 1] = max(0, row - 1)
        step = steps[token + row, token] if row > 0 else _NEXT_TOKEN
        token -= step != _NEXT_ROW
        row -= step != _NEXT_TOKEN
    return found
