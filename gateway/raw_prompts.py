"""Prompts in the model's own format, as completion requests have them, and the wire's request for each.

Knows every form of a prompt: text, token ids, lists of both, objects with media, and the two
prompts of encoder-decoder models as vLLM's examples write them. Does not know what a
placeholder is: the LLM service counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

from gateway.completion_schema import CompletionRequest
from gateway.content import MediaPart, parse_medium
from gateway.media import ResolvedItem
from gateway.translate import COMMON_NAMES, checked_size, to_sampling, to_stopping
from protos.llm.v1 import llm_service_pb2
from shared.errors import InvalidRequestError
from shared.settings import ModalityName

MAX_PROMPTS = 128
"""Prompts of one request."""

RAW_NAMES: Mapping[str, str] = {
    **COMMON_NAMES,
    "max_token_count": "max_tokens",
    "top_logprobs": "logprobs",
    "text": "prompt",
    "token_ids": "prompt",
    "media": "multi_modal_data",
}
"""What a completion request calls fields of the wire; see `RawPrompt.names` where it has several prompts."""

RawText: TypeAlias = str | tuple[int, ...]
"""Text, or token ids."""

_MODALITIES: tuple[ModalityName, ...] = get_args(ModalityName)
_MOST_ID = 2**31 - 1
_TEXTS = ("prompt", "prompt_token_ids")
_WITH_MEDIA = (*_TEXTS, "multi_modal_data")
_TWO_PROMPTS = ("encoder_prompt", "decoder_prompt")


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """One prompt.

    Attributes:
        text: what is continued; a decoder's prompt where there is an encoder's, and then it may be empty.
        media: in order of each modality's placeholders.
        encoder: what the encoder of an encoder-decoder model takes beside the media; None where
            the request says nothing of an encoder.
        param: path in the request of what is continued.
        encoder_param: path of what the encoder takes.
        media_param: path of the media.
    """

    text: RawText
    media: tuple[MediaPart, ...] = ()
    encoder: RawText | None = None
    param: str = "prompt"
    encoder_param: str = "encoder_prompt"
    media_param: str = "multi_modal_data"

    @property
    def names(self) -> Mapping[str, str]:
        """What the request calls the wire's fields of this prompt."""
        return {
            **RAW_NAMES,
            "prompt": self.param,
            "text": self.param,
            "token_ids": self.param,
            "encoder_prompt": self.encoder_param,
            "media": self.media_param,
            **{modality: f"{self.media_param}.{modality}" for modality in _MODALITIES},
        }


def raw_prompts(request: CompletionRequest) -> list[RawPrompt]:
    """The prompts of a request, in order.

    Raises:
        InvalidRequestError: one has no proper form; its path is the param.
    """
    if request.encoder_prompt is not None or request.decoder_prompt is not None:
        return [_of_two_fields(request)]
    value = request.prompt
    if value is None:
        raise InvalidRequestError(
            "Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter"
        )
    if request.multi_modal_data is not None:
        text = _raw_text(value, "prompt")
        return [RawPrompt(text, _media(request.multi_modal_data, "multi_modal_data"))]
    if not isinstance(value, list) or _is_ids(value):
        return [_prompt(value, "prompt")]
    _check_count(value)
    return [_prompt(entry, f"prompt[{index}]") for index, entry in enumerate(value)]


def _of_two_fields(request: CompletionRequest) -> RawPrompt:
    for name in ("prompt", "multi_modal_data"):
        if getattr(request, name) is not None:
            raise InvalidRequestError(
                f"'{name}' and 'encoder_prompt' with 'decoder_prompt' exclude each other; media stand in "
                "'encoder_prompt'.",
                param=name,
            )
    return _two_prompts({name: getattr(request, name) for name in _TWO_PROMPTS}, "")


def _check_count(values: Sequence[object]) -> None:
    if not values:
        raise InvalidRequestError(
            "Invalid 'prompt': empty array. Expected at least one prompt.", param="prompt"
        )
    if len(values) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"At most {MAX_PROMPTS} prompts may be sent at once, not {len(values)}.",
            param="prompt",
            code="too_many_prompts",
        )


def _prompt(value: object, param: str) -> RawPrompt:
    if not isinstance(value, dict):
        return RawPrompt(_raw_text(value, param), param=param)
    if any(name in value for name in _TWO_PROMPTS):
        return _two_prompts(value, f"{param}.")
    _check_keys(value, _WITH_MEDIA, param)
    path = f"{param}.multi_modal_data"
    media = _media(value.get("multi_modal_data"), path)
    return RawPrompt(_text_in(value, param), media, param=param, media_param=path)


def _two_prompts(value: Mapping[str, Any], prefix: str) -> RawPrompt:
    """Args:
    prefix: of the paths of both prompts.
    """
    _check_keys(value, _TWO_PROMPTS, prefix.removesuffix("."))
    path = f"{prefix}encoder_prompt"
    encoder = value.get("encoder_prompt")
    media_path = f"{path}.multi_modal_data"
    media = _media(encoder.get("multi_modal_data"), media_path) if isinstance(encoder, dict) else ()
    decoder_path = f"{prefix}decoder_prompt"
    return RawPrompt(
        _half(value.get("decoder_prompt"), decoder_path, _TEXTS),
        media,
        _half(encoder, path, _WITH_MEDIA),
        decoder_path,
        path,
        media_path,
    )


def _half(value: object, param: str, known: Sequence[str]) -> RawText:
    """One of two prompts; what is not said is empty.

    Args:
        known: keys that it may have as an object.
    """
    if not isinstance(value, dict):
        return "" if value is None else _raw_text(value, param)
    _check_keys(value, known, param)
    return _text_in(value, param) if any(value.get(name) is not None for name in _TEXTS) else ""


def _text_in(value: Mapping[str, Any], param: str) -> RawText:
    """The text or the token ids of an object."""
    given = [name for name in _TEXTS if value.get(name) is not None]
    if len(given) == 2:
        raise InvalidRequestError("'prompt' and 'prompt_token_ids' exclude each other.", param=param)
    name = given[0] if given else "prompt"
    return _raw_text(value.get(name), f"{param}.{name}")


def _raw_text(value: object, param: str) -> RawText:
    if isinstance(value, str):
        return value
    if value is None:
        raise InvalidRequestError(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if not isinstance(value, list) or not _is_ids(value):
        raise InvalidRequestError(
            f"Invalid type for '{param}': expected text or an array of token ids.",
            param=param,
            code="invalid_type",
        )
    wrong = next((index for index, token_id in enumerate(value) if not 0 <= token_id <= _MOST_ID), None)
    if wrong is not None:
        raise InvalidRequestError(
            f"Invalid '{param}[{wrong}]': no token id.", param=f"{param}[{wrong}]", code="invalid_value"
        )
    return tuple(value)


def _is_ids(values: Sequence[object]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _media(data: object, param: str) -> tuple[MediaPart, ...]:
    """The items of a prompt, modality by modality."""
    if data is None:
        return ()
    if not isinstance(data, dict):
        raise InvalidRequestError(f"Invalid type for '{param}': expected an object.", param=param)
    _check_keys(data, _MODALITIES, param)
    return tuple(part for modality in _MODALITIES for part in _items(data.get(modality), modality, param))


def _items(value: object, modality: ModalityName, param: str) -> list[MediaPart]:
    path = f"{param}.{modality}"
    if isinstance(value, list):
        return [parse_medium(entry, modality, f"{path}[{index}]") for index, entry in enumerate(value)]
    return [] if value is None else [parse_medium(value, modality, path)]


def _check_keys(value: Mapping[str, Any], known: Sequence[str], param: str) -> None:
    for name in value:
        if name not in known and value[name] is not None:
            path = f"{param}.{name[:64]}" if param else name[:64]
            raise InvalidRequestError(
                f"Unrecognized request argument supplied: {path}", param=path, code="unknown_parameter"
            )


def to_raw_request(
    request: CompletionRequest,
    prompt: RawPrompt,
    items: Sequence[ResolvedItem],
    *,
    request_id: str,
    max_model_len: int,
) -> llm_service_pb2.GenerateRequest:
    """Builds the LLM service's request for one prompt.

    Raises:
        ContextLengthError: the prompt is so long that no message could carry it.
    """
    message = llm_service_pb2.GenerateRequest(
        request_id=request_id,
        media=[item.item for item in items],
        sampling=to_sampling(request),
        stopping=to_stopping(request),
        top_logprobs=request.logprobs,
        deltas_may_wait=not request.stream,
    )
    if isinstance(prompt.text, str):
        message.text = prompt.text
    else:
        message.token_ids.ids.extend(prompt.text)
    if isinstance(prompt.encoder, str):
        message.encoder_prompt.text = prompt.encoder
    elif prompt.encoder is not None:
        message.encoder_prompt.token_ids.ids.extend(prompt.encoder)
    return checked_size(message, max_model_len, prompt.param)
