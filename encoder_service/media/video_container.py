"""Which container a video file is, and whether it is whole: from its bytes alone.

Knows the outermost structure of the containers that are accepted, so that no
library guesses among hundreds of formats. Does not know what they carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from shared.errors import BadMediaError, UnsupportedMediaError

Container = Literal["mov", "matroska", "gif"]
"""libav's names: mov is MP4 and QuickTime, matroska is Matroska and WebM."""

ACCEPTED = "MP4, MOV, WebM, Matroska and GIF videos are accepted"

_FIRST_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof"}
)
_BOXES = _FIRST_BOXES | {b"meta", b"uuid", b"mfra", b"udta", b"emsg", b"ssix", b"prft", b"pdin"}
_STILL_BRANDS = {b"avif": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}

# First bytes of what people send and we do not take, so that the refusal can name it.
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (8, b"AVI ", "AVI"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"OggS", "Ogg"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media"),
    (0, b"\x00\x00\x01\xba", "MPEG program stream"),
    (0, b"\x00\x00\x01\xb3", "MPEG video without a container"),
    (0, b"\x47\x40", "MPEG transport stream"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"ffconcat", "a list of files"),
    (0, b"<?xml", "XML"),
    (0, b"ID3", "MP3 audio"),
    (8, b"WAVE", "WAVE audio"),
    (0, b"fLaC", "FLAC audio"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (8, b"WEBP", "a WebP picture"),
)

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MOST_BOXES = 100_000


def container_of(payload: bytes) -> Container:
    """Names the container of a video file.

    Raises:
        UnsupportedMediaError: a known format that is not accepted.
        BadMediaError: nothing that is known.
    """
    if payload[:4] == _EBML:
        return "matroska"
    if payload[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if payload[4:8] in _FIRST_BOXES:
        still = _STILL_BRANDS.get(payload[8:12]) if payload[4:8] == b"ftyp" else None
        if still is not None:
            raise UnsupportedMediaError(f"{still} is a picture; {ACCEPTED}")
        return "mov"
    for offset, signature, name in _FOREIGN:
        if payload.startswith(signature, offset):
            raise UnsupportedMediaError(f"{name} is not accepted; {ACCEPTED}")
    raise BadMediaError(f"the bytes are not a video that can be read; {ACCEPTED}")


def check_whole(payload: bytes, container: Container, what: str = "video") -> None:
    """Refuses a file that ends before the end that it announces.

    Libraries play what is there, so that a cut video would look like a shorter one.
    A live WebM recording announces no end: nobody can tell.

    Args:
        what: the file, for the error's text.

    Raises:
        BadMediaError: it is cut short.
    """
    end = {"mov": _end_of_boxes, "matroska": _end_of_segment, "gif": _end_of_gif}[container](payload)
    if end > len(payload):
        raise BadMediaError(f"the {what} is truncated: the file ends before the end that it announces")


def _end_of_boxes(payload: bytes) -> int:
    end = 0
    for start, size in _boxes(payload):
        end = start + size
    return end


def _boxes(payload: bytes) -> Iterator[tuple[int, int]]:
    """Place and size of each outermost box (ISO/IEC 14496-12, 4.2)."""
    start = 0
    for _ in range(_MOST_BOXES):
        size = int.from_bytes(payload[start : start + 4])
        if size == 1:
            size = int.from_bytes(payload[start + 8 : start + 16])
        # 0 runs to the file's end. What is no box may be anything: not ours to judge.
        if payload[start + 4 : start + 8] not in _BOXES or size < 8:
            return
        yield start, size
        start += size


def _end_of_segment(payload: bytes) -> int:
    """End of the one segment (RFC 9559, 4.5), or 0 where it is unknown."""
    head = _element_size(payload, len(_EBML))
    if head is None:
        return 0
    start = head[0] + head[1]
    if payload[start : start + 4] != _SEGMENT:
        return 0
    segment = _element_size(payload, start + 4)
    return 0 if segment is None else segment[0] + segment[1]


def _element_size(payload: bytes, place: int) -> tuple[int, int] | None:
    """Reads an EBML size (RFC 8794, 4): where the content starts and how long it is, if known."""
    first = payload[place] if place < len(payload) else 0
    length = 9 - first.bit_length()
    if length > 8:
        return None
    value = int.from_bytes(payload[place : place + length]) & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else (place + length, value)


def _end_of_gif(payload: bytes) -> int:
    """End of the last block (GIF89a, appendix); beyond the file where its trailer is missing."""
    place = 13 + _table_size(payload[10:11])
    while payload[place : place + 1] in (b"!", b","):
        if payload[place] == ord("!"):
            place += 2
        else:
            place += 11 + _table_size(payload[place + 9 : place + 10])
        while place < len(payload) and payload[place]:
            place += payload[place] + 1
        place += 1
    return place + 1 if place < len(payload) else len(payload) + 1


def _table_size(flags: bytes) -> int:
    """Bytes of the colour table that a block's flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0
