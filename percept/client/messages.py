"""Chat messages in OpenAI's form, to the wire's conversation and its media.

Knows the types of parts, and those beyond OpenAI's that carry Python values. Does
not fetch anything from the network.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from percept.client.items import Item, ItemSettings
from percept.client.media import items_of
from protos.llm.v1 import llm_service_pb2
from shared.errors import BadEmbeddingsError, BadMediaError, InvalidRequestError
from shared.families.catalogue import Modality

Message: TypeAlias = Mapping[str, Any]
"""{"role": ..., "content": text or a list of parts}."""

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_URLS: dict[str, tuple[str, Modality]] = {
    "image_url": ("image_url", "image"),
    "input_image": ("image_url", "image"),
    "video_url": ("video_url", "video"),
    "audio_url": ("audio_url", "audio"),
}
_VALUES: dict[str, Modality] = {"image": "image", "video": "video", "audio": "audio"}
_EMBEDDINGS: dict[str, Modality] = {
    "image_embeds": "image",
    "video_embeds": "video",
    "audio_embeds": "audio",
}
_INPUT_AUDIO = "input_audio"
_TYPES = ", ".join(sorted({*_TEXTS, *_URLS, *_VALUES, *_EMBEDDINGS, _INPUT_AUDIO}))
# What earlier models call the developer's instructions; templates know the older name.
_ROLES = {"developer": "system"}


def build_conversation(
    messages: Sequence[Message], settings: ItemSettings
) -> tuple[llm_service_pb2.Conversation, list[Item]]:
    """The conversation and, in order of appearance, its media.

    Args:
        settings: of every item that is no embedding.

    Raises:
        PerceptError: a message or a part has no proper form; its path is the param.
    """
    conversation = llm_service_pb2.Conversation()
    items: list[Item] = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError("a message is a mapping with a role", param=f"messages[{index}]")
        role = message["role"]
        target = conversation.messages.add(role=_ROLES.get(role, role))
        for part in _parts(message.get("content"), f"messages[{index}].content", settings):
            if isinstance(part, str):
                target.parts.add(text=part)
                continue
            for item in part:
                target.parts.add(media_index=len(items))
                items.append(item)
    return conversation, items


def _parts(content: object, param: str, settings: ItemSettings) -> list[str | list[Item]]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence):
        raise InvalidRequestError("content is text or a list of parts", param=param)
    return [_part(part, f"{param}[{index}]", settings) for index, part in enumerate(content)]


def _part(part: object, param: str, settings: ItemSettings) -> str | list[Item]:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequestError("a part is a mapping or text", param=param)
    kind = part.get("type")
    if kind in _TEXTS:
        return _text(part.get(_TEXTS[kind]), param)
    if kind in _URLS:
        name, modality = _URLS[kind]
        value = part.get(name)
        url = value.get("url") if isinstance(value, Mapping) else value
        return items_of(_text(url, f"{param}.{name}"), modality, settings[modality], f"{param}.{name}")
    if kind in _VALUES:
        modality = _VALUES[kind]
        return items_of(_given(part, kind, param), modality, settings[modality], f"{param}.{kind}")
    if kind in _EMBEDDINGS:
        return _embeddings(_given(part, kind, param), _EMBEDDINGS[kind], f"{param}.{kind}")
    if kind == _INPUT_AUDIO:
        return [_encoded_recording(part.get(kind), settings["audio"], f"{param}.{kind}.data")]
    raise InvalidRequestError(f"a part's type is one of {_TYPES}; it is {kind!r}", param=f"{param}.type")


def _encoded_recording(value: object, settings: str, param: str) -> Item:
    """A recording as OpenAI's clients send it: base64 of a file, whose format the file itself tells."""
    data = _text(value.get("data") if isinstance(value, Mapping) else None, param)
    if data[:5].lower() == "data:":
        (item,) = items_of(data, "audio", settings, param)
        return item
    try:
        payload = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadMediaError("the data is not valid base64", param=param) from None
    (item,) = items_of(payload, "audio", settings, param)
    return item


def _embeddings(value: Any, modality: Modality, param: str) -> list[Item]:
    if isinstance(value, str):
        return _encoded_item({f"{modality}_embeds": value}, modality, param)
    if isinstance(value, Mapping) and any(isinstance(field, str) for field in value.values()):
        return _encoded_item(value, modality, param)
    return items_of(value, modality, "", param)


def _encoded_item(fields: Mapping[str, Any], modality: Modality, param: str) -> list[Item]:
    """Embeddings as OpenAI's clients send them: each field base64 of a file, or a JSON array."""
    import json

    from percept.client.items import make_item
    from protos.media.v1 import media_pb2

    try:
        data = {
            name: base64.b64decode(field, validate=True)
            if isinstance(field, str)
            else json.dumps(field, separators=(",", ":")).encode()
            for name, field in sorted(fields.items())
        }
    except (binascii.Error, ValueError, TypeError):
        raise BadEmbeddingsError("a field is neither base64 nor an array of numbers", param=param) from None
    wire = [media_pb2.PrecomputedField(name=name, data=field) for name, field in data.items()]
    payload = media_pb2.PrecomputedEmbeddings(fields=wire).SerializeToString(deterministic=True)
    return [make_item(payload, modality, media_pb2.MEDIA_FORM_EMBEDDINGS, "", param)]


def _given(part: Mapping[str, Any], name: str, param: str) -> Any:
    if part.get(name) is None:
        raise InvalidRequestError(f"the part needs {name!r}", param=f"{param}.{name}")
    return part[name]


def _text(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError("text is needed here", param=param)
    return value
