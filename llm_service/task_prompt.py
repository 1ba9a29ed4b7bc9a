"""Prompts of models that are given a task about one item, and what their answers say.

Knows the family's layout. Does not know tokens of any model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from shared.errors import InvalidRequestError
from shared.families.base import MediaInfo
from shared.families.takes_tasks import TakesTasks
from shared.families.token_rules import TokenRules


class TaskPrompts:
    """Writes the prompts of one model out, and reads answers to them."""

    def __init__(self, layout: TakesTasks) -> None:
        self._layout = layout

    def written(self, text: str) -> tuple[str, str]:
        """A prompt's text as the model reads it, and the task that it names, "" for none.

        Raises:
            InvalidRequestError: there is no such task, it takes no words beside it, or the text has more
                placeholders than one.
        """
        return self._layout.written(text), self._layout.task(text)

    def check_items(self, count: int) -> None:
        """Refuses prompts without an item, and with several.

        Raises:
            InvalidRequestError: `param` is "media".
        """
        if count != 1:
            raise InvalidRequestError(f"a prompt of this model has one picture, not {count}", param="media")

    def rules(self, token_ids: Sequence[int]) -> TokenRules:
        """Which tokens may answer a prompt."""
        return self._layout.rules(token_ids)

    def reader(self, task: str, info: MediaInfo) -> Callable[[str], str] | None:
        """What makes JSON of an answer's text; "" where that cannot be read. None where there is no task."""
        return partial(self._read, task, info) if task else None

    def _read(self, task: str, info: MediaInfo, answer: str) -> str:
        said = self._layout.read(answer, task, info)
        return "" if said is None else json.dumps(said, ensure_ascii=False)
