"""The other prompt of a request to an encoder-decoder model: checked, and joined with the decoder's.

Knows the wire's message and placeholders. Does not know what a model makes of both: the
family's layout does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InvalidRequestError
from shared.families.base import Modality, PromptLayout
from shared.families.encoder_prompts import TakesEncoderPrompt


class EncoderPrompts:
    """Joins the two prompts of requests to one model."""

    def __init__(self, layout: PromptLayout, placeholders: Mapping[int, Modality]) -> None:
        """Args:
        placeholders: tokens that stand for items.
        """
        self._layout = layout
        self._placeholders = placeholders

    def check(self, request: pb.GenerateRequest) -> None:
        """Checks what is cheap to check.

        Raises:
            InvalidRequestError: the model has one prompt, or the request has no raw one.
        """
        if not request.HasField("encoder_prompt"):
            return
        if not isinstance(self._layout, TakesEncoderPrompt):
            raise InvalidRequestError(
                "this model has no encoder with a prompt of its own: give one prompt, with the placeholders "
                "of its media",
                param="encoder_prompt",
            )
        if request.WhichOneof("prompt") not in ("text", "token_ids"):
            raise InvalidRequestError("an encoder prompt goes with text or token ids", param="encoder_prompt")

    def joined(
        self, encoder_ids: Sequence[int], decoder_ids: Sequence[int], modalities: Sequence[Modality]
    ) -> list[int]:
        """One prompt of both.

        Args:
            modalities: of the request's items, in order.

        Raises:
            InvalidRequestError: the encoder prompt has placeholders, but not those of the items, or the
                model refuses it.
        """
        assert isinstance(self._layout, TakesEncoderPrompt)
        found = [self._placeholders[token_id] for token_id in encoder_ids if token_id in self._placeholders]
        if found and sorted(found) != sorted(modalities):
            raise InvalidRequestError(
                f"the encoder prompt has {len(found)} placeholders, the request has {len(modalities)} items",
                param="encoder_prompt",
            )
        rest = [token_id for token_id in encoder_ids if token_id not in self._placeholders]
        return self._layout.joined(rest, decoder_ids)
