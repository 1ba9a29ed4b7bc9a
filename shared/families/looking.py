"""Language models whose text looks at items across layers of their own, not at rows among its tokens.

The items' rows stand in front of a sequence's text. There they take slots of the same
blocks as text does, whose keys and values in the looking layers are computed from the
rows, once, and are found again by whoever begins with the same items. Text layers write
nothing for them.

Knows the shape of the contract. Knows no model, and importing it imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shared.families.base import LanguageModel, Span


@dataclass(frozen=True, slots=True)
class StepSequence:
    """One sequence's part of a step.

    Attributes:
        row: its first row in the flattened batch.
        start: its first token of this step, counted from its own beginning.
        count: its tokens of this step.
        token_ids: all that is known of it, rows of items included; not to be changed.
        spans: where its items' rows are, in front of everything else; `item` is not set.
        padding: rows between the items' and the text that hold nothing: they have the text begin
            with a block of its own.
    """

    row: int
    start: int
    count: int
    token_ids: Sequence[int]
    spans: tuple[Span, ...]
    padding: int = 0

    @property
    def filled(self) -> int:
        """Rows of items in front of everything else, and what is computed together with them."""
        if not self.spans:
            return 0
        last = self.spans[-1]
        return last.start + last.length + last.tail

    @property
    def ahead(self) -> int:
        """Rows in front of its text: those of items, and those that hold nothing."""
        return self.filled + self.padding


@runtime_checkable
class LooksAtItems(LanguageModel, Protocol):
    """A `LanguageModel` that must know which rows of a step are whose.

    Its `forward` takes `sequences` too: a tuple of `StepSequence`, in order, that covers the
    step's rows. What it gives for rows of items means nothing.
    """

    looks_at_items: bool
    """True."""

    item_multiple: int
    """Rows in front of a text are made a multiple of this by rows that hold nothing. Where it is a multiple
    of the block size, whoever asks about the same items computes none of their keys again; where it is 1,
    rows behind the last whole block come again."""


def padding_behind(row_count: int, multiple: int) -> int:
    """Rows that hold nothing, between so many rows of items and the text."""
    return -row_count % multiple
