"""Media of a prompt as the wire takes them: identity and bytes.

Knows keys, forms and settings. Does not know how values of Python become bytes:
`media.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.errors import InvalidRequestError
from shared.families.catalogue import Modality

MODALITIES: dict[Modality, media_pb2.Modality.ValueType] = {
    "image": media_pb2.MODALITY_IMAGE,
    "video": media_pb2.MODALITY_VIDEO,
    "audio": media_pb2.MODALITY_AUDIO,
}


@dataclass(frozen=True, slots=True)
class Item:
    """One item, its bytes at hand.

    Attributes:
        wire: key, modality, form and settings, as both services take them.
        payload: what the encoder reads.
        param: where it stood in what the caller gave, for errors.
    """

    wire: media_pb2.MediaItem
    payload: bytes
    param: str


def make_item(
    payload: bytes, modality: Modality, form: media_pb2.MediaForm.ValueType, settings: str, param: str
) -> Item:
    """An item with its content key.

    Args:
        settings: canonical JSON, see `canonical_settings`.
    """
    value = MODALITIES[modality]
    key = content_key(value, form, settings, payload)
    return Item(media_pb2.MediaItem(key=key, modality=value, form=form, settings=settings), payload, param)


def file_item(payload: bytes, modality: Modality, settings: str, param: str) -> Item:
    """An item of a media file's bytes."""
    return make_item(payload, modality, media_pb2.MEDIA_FORM_FILE, settings, param)


def canonical_settings(settings: Mapping[str, Any] | None, param: str = "mm_processor_kwargs") -> str:
    """Processor settings as canonical JSON, "" for none: equal settings give equal keys.

    Raises:
        InvalidRequestError: they are no JSON object.
    """
    if not settings:
        return ""
    try:
        return json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{param} must be a JSON object: {error}", param=param) from None
