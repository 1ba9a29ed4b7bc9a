"""Prompt layouts of models that take two prompts: an encoder's and a decoder's.

Knows the shape of the contract. Knows no model, and importing it imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from shared.errors import InvalidRequestError
from shared.families.base import PromptLayout


@runtime_checkable
class TakesEncoderPrompt(PromptLayout, Protocol):
    """A `PromptLayout` of an encoder-decoder model, whose prompts may be given in two."""

    def joined(self, encoder_ids: Sequence[int], decoder_ids: Sequence[int]) -> list[int]:
        """One prompt of both, as `expand` takes it.

        Args:
            encoder_ids: what the encoder reads beside the items, without placeholders of items;
                of a text without begin and end tokens, unless the layout writes such (`TakesTasks`).
            decoder_ids: what is continued; empty where the model is to begin by itself.

        Raises:
            InvalidRequestError: the model's encoder reads no text, and there is some; `param` is
                "encoder_prompt".
        """
        ...


def check_reads_no_text(encoder_ids: Sequence[int]) -> None:
    """Refuses text for an encoder that looks at items alone.

    Raises:
        InvalidRequestError: there is some.
    """
    if encoder_ids:
        raise InvalidRequestError(
            "this model's encoder reads no text: an encoder prompt has placeholders of items alone, or "
            "nothing; text goes into the decoder prompt",
            param="encoder_prompt",
        )
