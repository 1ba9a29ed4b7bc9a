"""The legacy OpenAI completion request as a strict type.

Knows its fields, types and bounds. Does not know the wire contract; the forms of a prompt
are in `raw_prompts.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.fields import COMPLETION_REFUSED
from gateway.generation_request import GenerationRequest, parse_request
from shared.errors import InvalidRequestError

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""


def _check_prompt(value: object) -> object:
    if value is None or isinstance(value, str | list | dict):
        return value
    raise PydanticCustomError("prompt_type", "expected text, a list or an object")


# Checked by hand: a union's own errors would name its arms, not the field.
AnyPrompt = Annotated[
    Any, BeforeValidator(_check_prompt, json_schema_input_type=str | list[Any] | dict[str, Any] | None)
]


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions, without what is only accepted or refused."""

    prompt: AnyPrompt = Field(
        None,
        description="Text in the model's own format; a list of texts; token ids; lists of them; or an "
        "object {'prompt', 'multi_modal_data'} or {'encoder_prompt', 'decoder_prompt'}, or a list of these.",
    )
    multi_modal_data: dict[str, Any] | None = Field(
        None, description="Media of the one prompt: 'image', 'video' and 'audio', each one item or a list."
    )
    encoder_prompt: AnyPrompt = Field(
        None, description="Instead of 'prompt', for encoder-decoder models: what the encoder takes."
    )
    decoder_prompt: AnyPrompt = Field(None, description="With 'encoder_prompt': what is continued.")
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError(
                "Unsupported parameter: 'best_of' other than 'n' is not supported.",
                param="best_of",
                code="unsupported_parameter",
            )
        if self.echo and self.logprobs is not None:
            raise InvalidRequestError(
                "'echo' with 'logprobs' is not supported: a prompt's tokens have no log probabilities.",
                param="echo",
                code="unsupported_parameter",
            )
        return self

    @property
    def max_token_count(self) -> int:
        """Most tokens to generate."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


def parse_completion_request(body: object) -> CompletionRequest:
    """Validates a parsed JSON body.

    Raises:
        InvalidRequestError: naming the first mistake and the path of its field.
    """
    return parse_request(body, CompletionRequest, COMPLETION_REFUSED)
