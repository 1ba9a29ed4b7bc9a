"""Identity of media: the content key that caches, routing and prefix blocks share.

Knows how a key is computed. Does not know what the bytes mean.
"""

from __future__ import annotations

import hashlib

KEY_LENGTH = 64
"""Hexadecimal digits of a key."""


def content_key(modality: int, form: int, settings: str, payload: bytes) -> str:
    """Returns the content key of an item: 64 lower-case hexadecimal digits.

    SHA-256 over the length-framed fields, so that no two different items give
    the same input (a plain concatenation would).

    Args:
        modality: value of `protos.media.v1.Modality`.
        form: value of `protos.media.v1.MediaForm`.
        settings: canonical JSON of the item's processor settings, or "".
        payload: the encoded file, or the serialised `PrecomputedEmbeddings`.
    """
    digest = hashlib.sha256()
    for field in (b"percept.media.v1", b"%d" % modality, b"%d" % form, settings.encode()):
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    digest.update(payload)
    return digest.hexdigest()


def is_key(text: str) -> bool:
    """Says whether `text` has the form of a content key."""
    return len(text) == KEY_LENGTH and all(c in "0123456789abcdef" for c in text)
