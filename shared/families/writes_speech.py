"""Prompt layouts of models that write down what they hear, and are asked in other ways than in conversations.

Knows the shape of the contract. Knows no model, and importing it imports neither torch
nor transformers.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from shared.families.base import MediaInfo, PromptLayout
from shared.families.token_rules import SpeechTask, TokenRules


@runtime_checkable
class WritesSpeech(PromptLayout, Protocol):
    """A `PromptLayout` of a model that writes down what it hears: one recording for each prompt.

    Its prompts need no placeholder. Where one stands in a prompt, it means nothing.
    """

    chat_template: str
    """Renders messages where the checkpoint has no template of its own."""

    tells_times: bool
    """Whether it can be told when tokens of an answer are heard: see `Alignment`."""

    def sounding_rows(self, info: MediaInfo) -> int:
        """A recording's rows that hold sound; behind them is silence that fills up the window."""
        ...

    def speech_prompt(self, task: SpeechTask) -> tuple[str, str]:
        """What stands in front of and behind `previous_text` in the prompt.

        Raises:
            InvalidRequestError: the model does not know the language, or only English.
        """
        ...

    def fitted(self, token_ids: list[int]) -> list[int]:
        """A prompt whose previous text is cut to its last tokens, as many as the model was trained with."""
        ...

    def rules(self, token_ids: list[int], task: SpeechTask | None) -> TokenRules:
        """What may follow a prompt; what it leaves open of language, task and times is filled in.

        Args:
            task: what was asked for, where the prompt was made of it.
        """
        ...
