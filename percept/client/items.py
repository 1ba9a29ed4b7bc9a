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


SETTINGS_PATH = "item.settings"
"""What errors of the encoder service call an item's settings."""


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


class ItemSettings:
    """Canonical JSON of the settings of each modality's items: indexed by the modality."""

    def __init__(
        self,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            mm_processor_kwargs: settings of the model's processor, for all items; those under "image",
                "video" or "audio" are for that modality alone.
            media_io_kwargs: how files are read, by modality: {"video": {"num_frames": 16}}.

        Raises:
            InvalidRequestError: one is no JSON object, or is for a modality that has no such settings.
        """
        processor, reading = dict(mm_processor_kwargs or {}), media_io_kwargs or {}
        for modality in reading:
            if modality != "video":
                raise InvalidRequestError(
                    f"media_io_kwargs has no {modality!r}; it takes video",
                    param=f"media_io_kwargs.{modality}",
                )
        canonical_settings(reading, "media_io_kwargs")
        common = {name: value for name, value in processor.items() if name not in MODALITIES}
        self._texts: dict[Modality, str] = {}
        for modality in MODALITIES:
            own = {**common, **_object(processor.get(modality), f"mm_processor_kwargs.{modality}")}
            if modality == "video" and reading.get("video"):
                own["media_io"] = reading["video"]
            self._texts[modality] = canonical_settings(own)

    def __getitem__(self, modality: Modality) -> str:
        return self._texts[modality]


def _object(value: object, param: str) -> Mapping[str, Any]:
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise InvalidRequestError(f"{param} must be a mapping", param=param)


def settings_name(path: str) -> str:
    """The caller's name for a path in an item's settings that an error names."""
    path = path.removeprefix(SETTINGS_PATH)
    if path.startswith(".media_io"):
        return "media_io_kwargs.video" + path.removeprefix(".media_io")
    return "mm_processor_kwargs" + path


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
