"""Which rows of a step are computed in which way, for models that tell rows apart.

Knows sequences and where their rows lie. Does not know what a model does with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

from llm_service.engine.batch import ScheduledSequence
from shared.families.base import ChoosesByRow, LanguageModel, RowRun

RUNS_KEYWORD = "runs"
"""Forward keyword that carries the runs of a step."""


def switch_length(model: LanguageModel) -> int | None:
    """The model's `switch_length`; None for those that compute all rows alike."""
    return model.switch_length if isinstance(model, ChoosesByRow) else None


def a_variant(model: LanguageModel) -> str:
    """A set of weights that takes more memory in a step than the plain one, if the model has any."""
    return min(model.variants, default="") if isinstance(model, ChoosesByRow) else ""


def are_plain(items: Items[ScheduledSequence]) -> bool:
    """Whether every sequence is computed as a model does without being told."""
    return not any(item.sequence.variant or item.sequence.switched for item in items)


class RowRuns:
    """Makes the forward keywords for one model; what it is, is asked once, as protocols answer slowly."""

    def __init__(self, model: LanguageModel) -> None:
        self._chooses = isinstance(model, ChoosesByRow)

    def keywords(self, items: Items[ScheduledSequence], rows: Items[int]) -> dict[str, Any]:
        """The runs of a step; nothing, where the model or all of its rows need none.

        Args:
            rows: first flat row of each item.
        """
        if not self._chooses or are_plain(items):
            return {}
        runs = tuple(
            RowRun(row, item.count, item.sequence.variant, item.sequence.switched)
            for row, item in zip(rows, items, strict=True)
        )
        return {RUNS_KEYWORD: runs}
