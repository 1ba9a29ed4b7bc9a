"""What a message's `content` may hold, as typed parts.

Knows the part types of OpenAI and of vLLM, and every path by which an error
names a part. Does not fetch, decode or look at media.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.encoded import is_data_url
from shared.errors import InvalidRequestError
from shared.settings import ModalityName


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text as the client wrote it."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaUrlPart:
    """A picture, a video or a recording by URL: data, http, https or file.

    Attributes:
        param: path of the part, for errors.
    """

    modality: ModalityName
    url: str
    param: str


@dataclass(frozen=True, slots=True)
class EmbeddingsPart:
    """Precomputed embeddings of a picture, a video or a recording.

    Attributes:
        fields: name to base64 text, or to a JSON array.
        param: path of the part, for errors.
    """

    modality: ModalityName
    fields: Mapping[str, str | list[Any]]
    param: str


MediaPart = MediaUrlPart | EmbeddingsPart
Part = TextPart | MediaPart

_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
# The key that each type has its URL under; the first where there are several.
_URL_KEYS: dict[str, tuple[str, ...]] = {
    "image_url": ("image_url",),
    "input_image": ("image_url",),
    "video_url": ("video_url",),
    "input_video": ("video_url", "input_video"),
    "audio_url": ("audio_url",),
}
_EMBEDDINGS: dict[str, ModalityName] = {
    "image_embeds": "image",
    "video_embeds": "video",
    "audio_embeds": "audio",
}
_NAMING_KEYS = ("text", "image_url", "video_url", "input_video", "audio_url", "input_audio", *_EMBEDDINGS)
_DETAILS = frozenset({"auto", "low", "high", "original"})
# Hints about caching and origin: our caches go by content, so they change nothing.
_HINTS = frozenset({"uuid", "cache_control", "annotations", "logprobs"})
_MAX_FIELDS = 16
_MAX_FIELD_NAME_LENGTH = 64
_MAX_HINT_LENGTH = 256
_MAX_FORMAT_LENGTH = 64
_SUPPORTED = (
    "supported types are: 'text', 'image_url', 'image_embeds', 'video_url', 'video_embeds', 'input_audio', "
    "'audio_url', 'audio_embeds'"
)


def parse_content(content: str | list[Any], param: str) -> list[Part]:
    """Returns the parts of a message's content, in order.

    Raises:
        InvalidRequestError: a part of an unknown type or form; its path is the param.
    """
    if isinstance(content, str):
        return [TextPart(content)]
    if not content:
        raise InvalidRequestError(f"Invalid '{param}': empty array. Expected at least one part.", param=param)
    return [_parse_part(part, f"{param}[{index}]") for index, part in enumerate(content)]


def parse_medium(value: object, modality: ModalityName, param: str) -> MediaPart:
    """Returns the item that stands for a medium of a known modality: its URL, {"url": URL},
    {"data": BASE64}, or {"image_embeds": ...} and what else belongs to embeddings.

    Raises:
        InvalidRequestError: it is nothing of this; its path is the param.
    """
    if isinstance(value, str):
        value = {"url": value}
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Invalid type for '{param}': expected a URL or an object.", param=param)
    if f"{modality}_embeds" in value:
        return _embeddings(f"{modality}_embeds", value, param)
    if "data" in value:
        return _data(value, modality, param)
    _check_keys(value, {"url", "detail"}, param)
    _check_detail(value.get("detail"), f"{param}.detail")
    url = _text(value.get("url"), f"{param}.url")
    if not url:
        raise InvalidRequestError(f"Invalid '{param}': the URL is empty.", param=param)
    return MediaUrlPart(modality, url, param)


def _parse_part(part: object, param: str) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, dict):
        raise InvalidRequestError(f"Invalid type for '{param}': expected an object or a string.", param=param)
    kind = part.get("type", _guess_type(part))
    if kind is None:
        raise InvalidRequestError(f"Missing required parameter: '{param}.type'; {_SUPPORTED}.", param=param)
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        raise _unknown_type(kind, param)
    return parse(part, param)


def _guess_type(part: Mapping[str, Any]) -> str | None:
    """The type of a part that has none: the one key that says it."""
    named = [key for key in _NAMING_KEYS if key in part]
    return named[0] if len(named) == 1 else None


def _unknown_type(kind: object, param: str) -> InvalidRequestError:
    shown = repr(kind)[:64]
    path = f"{param}.type"
    return InvalidRequestError(f"Invalid value for '{path}': {shown}; {_SUPPORTED}.", param=path)


def _parse_text(part: Mapping[str, Any], param: str) -> Part:
    _check_keys(part, {"type", "text"}, param)
    return TextPart(_text(part.get("text"), f"{param}.text"))


def _parse_refusal(part: Mapping[str, Any], param: str) -> Part:
    _check_keys(part, {"type", "refusal"}, param)
    return TextPart(_text(part.get("refusal"), f"{param}.refusal"))


def _parse_url(kind: str, part: Mapping[str, Any], param: str) -> Part:
    keys = _URL_KEYS[kind]
    _check_keys(part, {"type", "detail", *keys}, param)
    _check_detail(part.get("detail"), f"{param}.detail")
    given = [key for key in keys if part.get(key) is not None]
    if len(given) > 1:
        raise InvalidRequestError(f"'{given[0]}' and '{given[1]}' exclude each other.", param=param)
    key = given[0] if given else keys[0]
    path = f"{param}.{key}"
    value = part.get(key)
    if isinstance(value, dict):
        _check_keys(value, {"url", "detail"}, path)
        _check_detail(value.get("detail"), f"{path}.detail")
        value = value.get("url")
        _text(value, f"{path}.url")
    url = _text(value, path)
    if not url:
        raise InvalidRequestError(f"Invalid '{path}': the URL is empty.", param=path)
    return MediaUrlPart(_modality_of(kind), url, path)


def _modality_of(kind: str) -> ModalityName:
    return "video" if "video" in kind else "audio" if "audio" in kind else "image"


def _parse_audio(part: Mapping[str, Any], param: str) -> Part:
    """OpenAI's form: base64, and a format that is only a hint, since the file itself tells."""
    _check_keys(part, {"type", "input_audio"}, param)
    path = f"{param}.input_audio"
    value = part.get("input_audio")
    if not isinstance(value, dict):
        if value is None:
            raise InvalidRequestError(f"Missing required parameter: '{path}'.", param=path)
        raise InvalidRequestError(f"Invalid type for '{path}': expected an object.", param=path)
    return _data(value, "audio", path)


def _data(value: Mapping[str, Any], modality: ModalityName, path: str) -> MediaUrlPart:
    """A file as base64."""
    _check_keys(value, {"data", "format"}, path)
    form = value.get("format")
    if form is not None and not (isinstance(form, str) and len(form) <= _MAX_FORMAT_LENGTH):
        raise InvalidRequestError(f"Invalid value for '{path}.format'.", param=f"{path}.format")
    data = _text(value.get("data"), f"{path}.data")
    url = data if is_data_url(data) else f"data:;base64,{data}"
    return MediaUrlPart(modality, url, f"{path}.data")


def _parse_embeddings(kind: str, part: Mapping[str, Any], param: str) -> Part:
    _check_keys(part, {"type", kind}, param)
    path = f"{param}.{kind}"
    value = part.get(kind)
    return _embeddings(kind, {kind: value} if isinstance(value, str) else value, path)


def _embeddings(kind: str, fields: object, path: str) -> EmbeddingsPart:
    """Named tensors; `kind` says of what."""
    if not isinstance(fields, dict) or not fields:
        raise InvalidRequestError(
            f"Invalid type for '{path}': expected base64 text, or an object of named tensors.", param=path
        )
    if len(fields) > _MAX_FIELDS or any(len(name) > _MAX_FIELD_NAME_LENGTH for name in fields):
        raise InvalidRequestError(f"Invalid '{path}': too many fields, or a field name too long.", param=path)
    for name, field in fields.items():
        if not isinstance(field, str | list):
            raise InvalidRequestError(
                f"Invalid type for '{path}.{name}': expected base64 text or an array of numbers.",
                param=f"{path}.{name}",
            )
    return EmbeddingsPart(_EMBEDDINGS[kind], fields, path)


def _text(value: object, param: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise InvalidRequestError(f"Missing required parameter: '{param}'.", param=param)
    raise InvalidRequestError(f"Invalid type for '{param}': expected a string.", param=param)


def _check_keys(part: Mapping[str, Any], known: set[str], param: str) -> None:
    for key, value in part.items():
        if key in known or value is None:
            continue
        if key not in _HINTS:
            raise InvalidRequestError(
                f"Unrecognized request argument supplied: {param}.{key[:64]}", param=f"{param}.{key[:64]}"
            )
        if isinstance(value, str) and len(value) > _MAX_HINT_LENGTH:
            raise InvalidRequestError(f"Invalid '{param}.{key}': text too long.", param=f"{param}.{key}")


def _check_detail(detail: object, param: str) -> None:
    if detail is not None and not (isinstance(detail, str) and detail in _DETAILS):
        raise InvalidRequestError(
            f"Invalid value for '{param}': supported values are: 'auto', 'low' and 'high'.", param=param
        )


_PARSERS: dict[str, Callable[[Mapping[str, Any], str], Part]] = {
    **dict.fromkeys(_TEXT_TYPES, _parse_text),
    **{kind: partial(_parse_url, kind) for kind in _URL_KEYS},
    "refusal": _parse_refusal,
    "input_audio": _parse_audio,
    **{kind: partial(_parse_embeddings, kind) for kind in _EMBEDDINGS},
}
