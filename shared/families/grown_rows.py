"""Placeholder tokens to runs of rows, on one rotary axis.

Knows tokens, runs and positions. Does not know what a run stands for, a picture,
a tile or a frame: the family does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, MediaInfo, Span

Run = tuple[int, int, int]
"""A run of rows: its item, the item's row that it begins with, and how many rows it has."""


def grow_rows(
    token_ids: Sequence[int], row_id: int | Collection[int], runs: Sequence[Run], *, splittable: bool = True
) -> ExpandedPrompt:
    """Repeats each `row_id` as often as its run has rows.

    Args:
        row_id: a token, or several that stand for items of different kinds.
        runs: in the order of their tokens.
        splittable: see `Span`.

    Returns:
        The prompt; its positions are int64 (1, tokens).

    Raises:
        InvalidRequestError: there are more or fewer tokens than runs.
    """
    row_ids = {row_id} if isinstance(row_id, int) else set(row_id)
    count = sum(token in row_ids for token in token_ids)
    if count != len(runs):
        raise InvalidRequestError(f"the prompt has {count} places for {len(runs)} pictures, tiles or frames")
    expanded: list[int] = []
    spans: list[Span] = []
    for token in token_ids:
        if token not in row_ids:
            expanded.append(token)
            continue
        item, first_row, length = runs[len(spans)]
        spans.append(Span(item, len(expanded), length, splittable, first_row))
        expanded.extend([token] * length)
    positions = np.arange(len(expanded), dtype=np.int64)[np.newaxis]
    return ExpandedPrompt(expanded, spans, positions, next_position=len(expanded))


def even_runs(media: Sequence[MediaInfo], length: int) -> list[Run]:
    """Runs of `length` rows each, as many as every item has.

    Raises:
        InvalidRequestError: an item's rows are no multiple of that.
    """
    for index, info in enumerate(media):
        if info.row_count % length:
            raise InvalidRequestError(
                f"item {index} has {info.row_count} rows; they come {length} at a time",
                param=f"media[{index}]",
            )
    return [
        (item, first, length) for item, info in enumerate(media) for first in range(0, info.row_count, length)
    ]
