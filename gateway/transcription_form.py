"""The fields of a transcription request as a strict type.

Knows fields, types and bounds. Does not know the wire contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.generation_request import first_mistake
from shared.errors import InvalidRequestError
from shared.speech.judging import DEFAULT_INCREMENT, INCREMENT

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]

MAX_PROMPT_LENGTH = 16_384

_LISTS = frozenset({"timestamp_granularities", "include"})
_INERT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})
_REFUSED = frozenset({"known_speaker_names", "known_speaker_references", "keywords", "languages"})


class TranscriptionRequest(BaseModel):
    """Fields of POST /v1/audio/transcriptions and /v1/audio/translations beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=512)] = Field(
        "", description="A served model name; the main one when absent."
    )
    language: Annotated[str, Field(max_length=64)] = Field(
        "", description="What is spoken: a code or an English name. Heard when absent."
    )
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)] = Field(
        "", description="What was said before, or how words are spelt."
    )
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature_increment_on_fallback: Annotated[float, Field(ge=0, le=1)] = Field(
        DEFAULT_INCREMENT,
        description="With temperature 0, Whisper's pieces that fail are tried again at so much more, up to 1;"
        " 0: never.",
    )
    timestamp_granularities: Annotated[list[Literal["segment", "word"]], Field(max_length=8)] = Field(
        default_factory=list, description="What verbose_json has times of; segments when absent."
    )
    include: Annotated[list[Literal["logprobs"]], Field(max_length=8)] = Field(default_factory=list)
    stream: bool = False
    chunking_strategy: Literal["auto"] = Field(
        "auto", description="Long recordings are cut at quiet points, always."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Most tokens for each 30 seconds, or what the model hears at once."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise InvalidRequestError(
                "'timestamp_granularities' needs 'response_format' to be 'verbose_json'.",
                param="timestamp_granularities",
            )
        if self.include and self.response_format != "json":
            raise InvalidRequestError("'include' needs 'response_format' to be 'json'.", param="include")
        if self.stream and self.response_format not in ("json", "text"):
            raise InvalidRequestError(
                "With 'stream', 'response_format' is 'json' or 'text'.", param="response_format"
            )
        if self.stream and self.wants_tries:
            raise InvalidRequestError(
                "With 'stream' nothing is tried again: what was said cannot be taken back.", param=INCREMENT
            )
        return self

    @property
    def wants_tries(self) -> bool:
        """Whether it is said that what fails is to be tried again."""
        return INCREMENT in self.model_fields_set and self.temperature_increment_on_fallback > 0

    @property
    def wants_words(self) -> bool:
        """Whether each word is to have its times."""
        return "word" in self.timestamp_granularities

    @property
    def wants_segments(self) -> bool:
        """Whether the answer is made of segments."""
        return self.response_format in ("srt", "vtt", "verbose_json")


def parse_transcription_request(fields: Mapping[str, Sequence[str]]) -> TranscriptionRequest:
    """Validates a form's fields. Names of lists may end with "[]".

    Raises:
        InvalidRequestError: naming the first mistake and its field.
    """
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        plain = name.removesuffix("[]")
        if plain.startswith("chunking_strategy["):
            raise InvalidRequestError(
                "Unsupported parameter: 'chunking_strategy' can only be 'auto'.",
                param="chunking_strategy",
                code="unsupported_parameter",
            )
        if plain in _INERT:
            continue
        if plain in _REFUSED:
            raise InvalidRequestError(
                f"Unsupported parameter: '{plain}'.", param=plain, code="unsupported_parameter"
            )
        values[plain] = values.get(plain, []) + list(texts)
    for name, texts in values.items():
        if name not in _LISTS:
            if len(texts) > 1:
                raise InvalidRequestError(f"'{name[:64]}' is given more than once.", param=name[:64])
            values[name] = texts[0]
    try:
        return TranscriptionRequest.model_validate(values)
    except ValidationError as error:
        raise first_mistake(error) from None
