"""The items that a request's prompt refers to: checked, counted.

Knows the wire's form of an item and the limits. Does not know prompts, tokens or how many
rows an item has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from protos.media.v1 import media_pb2
from shared.content_key import is_key
from shared.errors import InvalidRequestError
from shared.families.base import Modality

MAX_ITEM_SETTINGS_LENGTH = 4096

_MODALITIES: Mapping[int, Modality] = {
    media_pb2.MODALITY_IMAGE: "image",
    media_pb2.MODALITY_VIDEO: "video",
    media_pb2.MODALITY_AUDIO: "audio",
}
_FORMS = frozenset({media_pb2.MEDIA_FORM_FILE, media_pb2.MEDIA_FORM_EMBEDDINGS, media_pb2.MEDIA_FORM_FRAMES})


@dataclass(frozen=True, slots=True)
class Item:
    """One media file that a prompt refers to."""

    key: str
    modality: Modality


def checked_items(media: Iterable[media_pb2.MediaItem], limits: Mapping[Modality, int]) -> tuple[Item, ...]:
    """The items of a request.

    Args:
        limits: items of each served modality that one prompt may hold.

    Raises:
        InvalidRequestError: one is not well formed, or there are too many of a modality.
    """
    items = tuple(_item(item, f"media[{index}]") for index, item in enumerate(media))
    for modality in dict.fromkeys(item.modality for item in items):
        limit = limits.get(modality, 0)
        if sum(item.modality == modality for item in items) > limit:
            raise InvalidRequestError(
                f"At most {limit} {modality}(s) may be provided in one prompt.", param="media"
            )
    return items


def modality_of(value: int, param: str) -> Modality:
    """The modality of a number on the wire.

    Raises:
        InvalidRequestError: it is unset or unknown.
    """
    modality = _MODALITIES.get(value)
    if modality is None:
        raise InvalidRequestError("the modality is required", param=param)
    return modality


def count_text(modalities: Sequence[Modality]) -> str:
    """Says what is there, for example "2 image, 1 video"."""
    counts = {modality: modalities.count(modality) for modality in dict.fromkeys(modalities)}
    return ", ".join(f"{count} {modality}" for modality, count in counts.items()) or "no media"


def _item(item: media_pb2.MediaItem, param: str) -> Item:
    if not is_key(item.key):
        raise InvalidRequestError("a key is 64 lower-case hexadecimal digits", param=f"{param}.key")
    modality = modality_of(item.modality, f"{param}.modality")
    if item.form not in _FORMS:
        raise InvalidRequestError("the form is missing or unknown", param=f"{param}.form")
    if item.form == media_pb2.MEDIA_FORM_FRAMES and modality != "video":
        raise InvalidRequestError("only a video is a list of frames", param=f"{param}.form")
    if len(item.settings) > MAX_ITEM_SETTINGS_LENGTH:
        raise InvalidRequestError("the settings are too long", param=f"{param}.settings")
    return Item(item.key, modality)
