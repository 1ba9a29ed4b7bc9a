"""What every request for text has, as a strict type, and how a body that breaks it is answered.

Knows the fields that all such requests share, their types and bounds. Does not know what is
to be continued, nor the wire contract; the fields that are only accepted or refused are in
`fields.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gateway.fields import Refused, take_supported
from gateway.media_io import MediaIo
from shared.errors import InvalidRequestError

MAX_STOP_STRINGS = 4

RequestT = TypeVar("RequestT", bound=BaseModel)

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024)]],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]


class Strict(BaseModel):
    """A part of a request: nothing is converted, nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(Strict):
    """What a streamed answer also says."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = Field(None, description="Accepted; answers are never padded.")
    continuous_usage_stats: Literal[False] | None = None


class GenerationRequest(Strict):
    """What every request for text has."""

    model: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="A served model name; the main one when absent."
    )
    request_id: Annotated[str, Field(max_length=128, pattern=r"^[\x21-\x7e]*$")] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = 1
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = False
    ignore_eos: bool | None = False
    mm_processor_kwargs: dict[str, Any] | None = Field(
        None,
        description="Processor settings of the items, where the server allows it; a name under 'image' or "
        "'video' is for that modality alone.",
    )
    media_io_kwargs: MediaIo | None = Field(None, description="Which frames of videos are taken.")

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        most = self.max_token_count
        if most is not None and (self.min_tokens or 0) > most:
            text = "'min_tokens' is more than the most tokens allowed."
            raise InvalidRequestError(text, param="min_tokens")
        return self

    @property
    def max_token_count(self) -> int | None:
        """Most tokens to generate; None for what the context leaves."""
        return self.max_tokens


def parse_request(body: object, request: type[RequestT], refused: Refused) -> RequestT:
    """Validates a parsed JSON body.

    Args:
        request: the type that it is to have.
        refused: see `fields.py`.

    Raises:
        InvalidRequestError: naming the first mistake and the path of its field.
    """
    if not isinstance(body, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    fields = take_supported(body, request.model_fields, refused)
    try:
        return request.model_validate(fields)
    except ValidationError as error:
        raise first_mistake(error) from None


def first_mistake(error: ValidationError) -> InvalidRequestError:
    """Only the first mistake, and never its input: answers stay small."""
    mistake = error.errors(include_url=False, include_input=False, include_context=True)[0]
    param = _path(mistake["loc"])
    kind = mistake["type"]
    if kind == "missing":
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return InvalidRequestError(
            f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter"
        )
    if kind == "literal_error":
        expected = mistake.get("ctx", {}).get("expected", "another")
        text = f"Invalid value for '{param}': supported values are: {expected}."
        return InvalidRequestError(text, param=param, code="invalid_value")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return InvalidRequestError(f"Invalid '{param}': {_lowered(mistake['msg'])}.", param=param, code=code)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            path += f".{step}" if path else step
    return path[:256]


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
