"""Which rows of a step are whose, for models whose text looks at items across.

Knows sequences and where their rows lie. Does not know what a model does with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

from llm_service.engine.batch import ScheduledSequence
from shared.families.base import LanguageModel, Span
from shared.families.looking import LooksAtItems, StepSequence, padding_behind

SEQUENCES_KEYWORD = "sequences"
"""Forward keyword that carries the step's sequences."""


class StepSequences:
    """Makes the forward keywords for one model; what it is, is asked once, as protocols answer slowly."""

    def __init__(self, model: LanguageModel) -> None:
        self._multiple = model.item_multiple if isinstance(model, LooksAtItems) else None

    def keywords(self, items: Items[ScheduledSequence], rows: Items[int]) -> dict[str, Any]:
        """The sequences of a step; nothing, where the model does not look at items.

        Args:
            rows: first flat row of each item.
        """
        if self._multiple is None:
            return {}
        parts = (_part(row, item, self._multiple) for row, item in zip(rows, items, strict=True))
        return {SEQUENCES_KEYWORD: tuple(parts)}


def _part(row: int, item: ScheduledSequence, multiple: int) -> StepSequence:
    sequence = item.sequence
    spans = tuple(
        Span(0, span.start, span.length, span.splittable, span.first_row, span.tail)
        for span in sequence.spans
    )
    part = StepSequence(row, item.start, item.count, sequence.token_ids, spans)
    return replace(part, padding=padding_behind(part.filled, multiple))
