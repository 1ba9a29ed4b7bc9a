"""Prompts as values: tokens, and where the rows of items go among them.

Knows shapes. Knows no model, and importing it imports neither torch nor
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Span:
    """A run of placeholder tokens that rows of one item fill.

    Attributes:
        item: index of the item among the prompt's media. An item of several
            pictures has as many spans.
        start: first position in the expanded prompt.
        length: number of rows.
        splittable: False where the span's tokens see each other in both directions,
            so that no prefill chunk may cut it.
        first_row: the item's row that fills the first position.
        tail: tokens behind the rows that are computed together with them, as both see
            each other; only where the span is not splittable.
    """

    item: int
    start: int
    length: int
    splittable: bool = True
    first_row: int = 0
    tail: int = 0


@dataclass(slots=True)
class ExpandedPrompt:
    """A prompt with its placeholders grown to spans.

    Attributes:
        token_ids: all tokens, placeholders repeated once per row.
        spans: where each item's rows go, in order, not overlapping.
        positions: int64 (axes, tokens) rotary positions; axes is 1 or 3 (M-RoPE:
            time, height, width).
        next_position: the position, on every axis, of the first generated
            token; later ones count up from it.
        variant: which of several sets of weights the prompt is computed with, where
            the family has such (adapters inside the checkpoint); "" for the plain
            ones. Prompts of different variants share no blocks; so a layout whose first tokens
            depend on later ones names those here.
        most_new: most tokens that may follow, where positions end before the context does;
            None: as many as the context leaves.
    """

    token_ids: list[int]
    spans: list[Span]
    positions: npt.NDArray[np.int64]
    next_position: int
    variant: str = ""
    most_new: int | None = None
