"""Recordings in prompts that hold pictures too, where the model processes them otherwise.

Knows the catalogue's facts and items. Does not know prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from percept.client.items import MODALITIES, Item, canonical_settings, make_item
from protos.media.v1 import media_pb2
from shared.families.catalogue import FamilyFacts


def has_both(items: Sequence[Item]) -> bool:
    """Whether there are pictures and recordings' files."""
    modalities = {item.wire.modality for item in items}
    return MODALITIES["image"] in modalities and any(map(_is_recording, items))


def settled(items: Sequence[Item], facts: FamilyFacts | None) -> list[Item]:
    """The items with what the catalogue says of recordings beside pictures under what the caller says.

    Hashes what changes: not for an event loop.

    Args:
        facts: of the served family; None for one that this version does not know.
    """
    ours = {} if facts is None else dict(facts.audio_settings_beside_pictures)
    if not ours:
        return list(items)
    return [_changed(item, ours) if _is_recording(item) else item for item in items]


def _is_recording(item: Item) -> bool:
    return item.wire.modality == MODALITIES["audio"] and item.wire.form == media_pb2.MEDIA_FORM_FILE


def _changed(item: Item, ours: dict[str, str]) -> Item:
    said = json.loads(item.wire.settings) if item.wire.settings else {}
    return make_item(item.payload, "audio", item.wire.form, canonical_settings({**ours, **said}), item.param)
