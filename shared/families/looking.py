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
    """

    row: int
    start: int
    count: int
    token_ids: Sequence[int]
    spans: tuple[Span, ...]

    @property
    def ahead(self) -> int:
        """Rows of items in front of its text."""
        return self.spans[-1].start + self.spans[-1].length if self.spans else 0


@runtime_checkable
class LooksAtItems(LanguageModel, Protocol):
    """A `LanguageModel` that must know which rows of a step are whose.

    Its `forward` takes `sequences` too: a tuple of `StepSequence`, in order, that covers the
    step's rows. What it gives for rows of items means nothing.
    """

    looks_at_items: bool
    """True."""
