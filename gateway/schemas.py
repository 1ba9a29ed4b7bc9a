"""The OpenAI chat completion request as a strict type.

Knows its fields, types and bounds. Does not know the wire contract; content parts are in
`content.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.fields import REFUSED
from gateway.generation_request import GenerationRequest, Strict, parse_request
from shared.errors import InvalidRequestError

MAX_MESSAGES = 4096


def _check_content(value: object) -> object:
    if value is None or isinstance(value, str | list):
        return value
    raise PydanticCustomError("content_type", "expected text or a list of parts")


# Unions checked by hand: a union's own errors would name its arms, not the field.
Content = Annotated[Any, BeforeValidator(_check_content, json_schema_input_type=str | list[Any] | None)]


class ChatMessage(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = Field(
        None,
        description="Text, or a list of parts: text, image_url, image_embeds, video_url, video_embeds.",
    )
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None
    # What our own answers and other servers' say about themselves; sent back
    # by clients that keep whole messages as history.
    audio: None = None
    annotations: list[Any] | None = None
    reasoning: Literal[""] | None = None
    reasoning_content: Literal[""] | None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_call_id: None = None


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions, without what is only accepted or refused."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
                param="top_logprobs",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "'continue_final_message' and 'add_generation_prompt' exclude each other.",
                param="continue_final_message",
            )
        return self

    @property
    def max_token_count(self) -> int | None:
        """Most tokens to generate; the newer name goes before the older."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_chat_request(body: object) -> ChatCompletionRequest:
    """Validates a parsed JSON body.

    Raises:
        InvalidRequestError: naming the first mistake and the path of its field.
    """
    return parse_request(body, ChatCompletionRequest, REFUSED)
