"""Which format a recording has, and whether it is whole: from its bytes alone.

Knows first bytes and outermost structures, so that no library guesses among
hundreds of formats and no declared format or file name counts. Does not decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoder_service.media.video_container import check_whole as check_container
from shared.errors import BadMediaError, UnsupportedMediaError

Library = Literal["libsndfile", "libav"]

ACCEPTED = "WAV, FLAC, MP3, Ogg, AIFF, CAF, AU, AAC, MP4, MOV, WebM and Matroska are accepted"


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """A format that is accepted.

    Attributes:
        name: the library's own name for it.
        library: what reads it.
    """

    name: str
    library: Library


_BY_BEGINNING: tuple[tuple[bytes, int, bytes, SoundFormat], ...] = (
    # What the file begins with, and what follows at an offset.
    (b"RIFF", 8, b"WAVE", SoundFormat("WAV", "libsndfile")),
    (b"RIFX", 8, b"WAVE", SoundFormat("WAV", "libsndfile")),
    (b"RF64", 8, b"WAVE", SoundFormat("RF64", "libsndfile")),
    (b"riff\x2e\x91\xcf\x11", 24, b"wave", SoundFormat("W64", "libsndfile")),
    (b"FORM", 8, b"AIF", SoundFormat("AIFF", "libsndfile")),
    (b"fLaC", 4, b"", SoundFormat("FLAC", "libsndfile")),
    (b"OggS", 4, b"", SoundFormat("OGG", "libsndfile")),
    (b"caff", 4, b"", SoundFormat("CAF", "libsndfile")),
    (b".snd", 4, b"", SoundFormat("AU", "libsndfile")),
    (b"\x1a\x45\xdf\xa3", 4, b"", SoundFormat("matroska", "libav")),
    (b"", 4, b"ftyp", SoundFormat("mov", "libav")),
    (b"", 4, b"moov", SoundFormat("mov", "libav")),
    (b"", 4, b"mdat", SoundFormat("mov", "libav")),
    (b"", 4, b"wide", SoundFormat("mov", "libav")),
    (b"ADIF", 4, b"", SoundFormat("aac", "libav")),
)

# First bytes of what people send and we do not take, so that the refusal can name it.
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media"),
    (0, b"#!AMR", "AMR"),
    (0, b"MThd", "MIDI"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"FLV\x01", "Flash video"),
    (8, b"AVI ", "AVI"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"<?xml", "XML"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"%PDF", "PDF"),
)

_UNKNOWN_LENGTHS = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF})
"""What programs write that cannot go back to the header of what they stream."""

_NEARLY_2_GIB = 0x7FFF0000
_MOST_ZEROS = 1 << 20
"""Bytes behind tags among which the first frame begins."""
_MOST_CHUNKS = 100_000


def format_of(payload: bytes) -> SoundFormat:
    """Names the format of a recording.

    Raises:
        UnsupportedMediaError: a known format that is not accepted.
        BadMediaError: nothing that is known.
    """
    for beginning, offset, next_bytes, found in _BY_BEGINNING:
        if payload.startswith(beginning) and payload.startswith(next_bytes, offset):
            return found
    for offset, signature, name in _FOREIGN:
        if payload.startswith(signature, offset):
            raise UnsupportedMediaError(f"{name} is not accepted as audio; {ACCEPTED}")
    start = _after_tags(payload)
    found_stream = _stream_format(payload[start : start + _MOST_ZEROS])
    if found_stream is None:
        raise BadMediaError(f"the bytes are no audio that can be read; {ACCEPTED}")
    return found_stream


def check_whole(payload: bytes, found: SoundFormat) -> None:
    """Refuses a file that ends before the end that it announces.

    Libraries play what is there, so that a cut recording would look like a shorter
    one. Streamed formats announce no end: nobody can tell.

    Raises:
        BadMediaError: it is cut short.
    """
    if found.name == "mov":
        check_container(payload, "mov", "recording")
    elif found.name == "matroska":
        check_container(payload, "matroska", "recording")
    elif found.name in ("WAV", "AIFF") and _end_of_samples(payload) > len(payload):
        raise cut_short()


def cut_short() -> BadMediaError:
    """The refusal of a file that ends too early."""
    return BadMediaError("the recording is truncated: the file ends before the end that it announces")


def _after_tags(payload: bytes) -> int:
    """Where the sound begins behind ID3v2 tags (ID3v2.4, 3.1): each tells its length in four times 7 bits."""
    place = 0
    while payload.startswith(b"ID3", place) and len(payload) >= place + 10:
        size = 0
        for byte in payload[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = payload[place + 5] & 0x10
        place += 10 + size + (10 if has_footer else 0)
    return place


def _stream_format(payload: bytes) -> SoundFormat | None:
    """MPEG audio or AAC by the header of its first frame (ISO/IEC 11172-3, 2.4.1.3; 13818-7, 6.2)."""
    # Some writers leave zeros between tags and sound.
    head = payload.lstrip(b"\0")[:4]
    if head.startswith(b"fLaC"):
        return SoundFormat("FLAC", "libsndfile")
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    if head[1] & 0xF6 == 0xF0:
        return SoundFormat("aac", "libav")
    bit_rate, rate = head[2] >> 4, head[2] >> 2 & 3
    is_mpeg = version != 1 and layer != 0 and bit_rate != 15 and rate != 3
    return SoundFormat("MP3", "libsndfile") if is_mpeg else None


def _end_of_samples(payload: bytes) -> int:
    """Where the chunk of samples of a RIFF or AIFF file ends; 0 where nothing says it."""
    order: Literal["big", "little"] = "little" if payload.startswith(b"RIFF") else "big"
    place = 12
    for _ in range(_MOST_CHUNKS):
        size = int.from_bytes(payload[place + 4 : place + 8], order)
        if payload[place : place + 4] in (b"data", b"SSND"):
            is_unknown = size in _UNKNOWN_LENGTHS or _NEARLY_2_GIB <= size < 1 << 31
            return 0 if is_unknown else place + 8 + size
        place += 8 + size + size % 2
        if place >= len(payload):
            break
    return 0
