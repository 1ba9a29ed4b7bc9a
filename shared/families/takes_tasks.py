"""Prompt layouts of encoder-decoder models that are given a task about one item, not a conversation.

Knows the shape of the contract. Knows no model, and importing it imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from shared.families.base import MediaInfo, PromptLayout
from shared.families.token_rules import TokenRules


@runtime_checkable
class TakesTasks(PromptLayout, Protocol):
    """A `PromptLayout` of a model whose text encoder reads the item and a task, and whose decoder answers.

    Every prompt has one item. Its placeholder may stand anywhere in the prompt, and
    need not: the layout puts the item where the model was trained to find it.
    """

    chat_template: str
    """Renders messages where the checkpoint has no template of its own."""

    added_tokens: tuple[str, ...]
    """Special tokens that the model knows behind its tokenizer's own, in order."""

    def shows(self, special_token: str) -> bool:
        """Whether a token that the tokenizer calls special is text to users all the same (a place in a
        picture): answers show it, and it may be typed."""
        ...

    def written(self, text: str) -> str:
        """A prompt's text as the text encoder reads it, with one placeholder and the marks around it.

        Raises:
            InvalidRequestError: there is no such task, it takes no words beside it, or the text has more
                placeholders than one.
        """
        ...

    def task(self, text: str) -> str:
        """The task that a prompt's text names; "" for a prompt in own words."""
        ...

    def rules(self, token_ids: Sequence[int]) -> TokenRules:
        """What may be chosen in an answer to a prompt, given as `expand` takes it."""
        ...

    def read(self, answer: str, task: str, info: MediaInfo) -> dict[str, Any] | None:
        """What an answer says, as JSON takes it; None where its places mean nothing without a size.

        Args:
            answer: its text, with all tokens that `shows` names.
            task: as `task` gave it, not "".
            info: of the item.
        """
        ...

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> Any:
        """See `PromptLayout`. Takes the tokens of what `written` gave."""
        ...
