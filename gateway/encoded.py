"""Base64 and data URLs to bytes. Knows both syntaxes; does not know what the bytes are."""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

from shared.errors import BadMediaError, MediaTooLargeError

# A C call holds the interpreter's lock for as long as it runs: decoding in
# pieces lets the event loop's thread have its turn between two of them.
_PIECE_LENGTH = 512 * 1024
_MAX_HEAD_LENGTH = 1024
_WHITESPACE = " \t\r\n"
_MAX_FRAMES = 16 * 1024
"""More than any encoder service takes; small ones would take many times the memory of their text."""
_FRAME_TYPES = frozenset({"video/jpeg", "video/jpg", "video/png"})


def decode_base64(text: str, max_byte_count: int) -> bytes:
    """Decodes strict base64; white space between the characters is allowed.

    Raises:
        BadMediaError: it is empty, or not base64.
        MediaTooLargeError: it decodes to more than `max_byte_count` bytes.
    """
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise _broken() from None
    if any(space in text for space in _WHITESPACE):
        data = data.translate(None, _WHITESPACE.encode())
    decoded = bytearray()
    for start in range(0, len(data), _PIECE_LENGTH):
        last = start + _PIECE_LENGTH >= len(data)
        decoded += _decode_piece(data[start : start + _PIECE_LENGTH], last=last)
        if len(decoded) > max_byte_count:
            raise _too_large(max_byte_count)
    if not decoded:
        raise BadMediaError("The base64 data is empty.")
    return bytes(decoded)


def _decode_piece(piece: bytes, *, last: bool) -> bytes:
    try:
        decoded = binascii.a2b_base64(piece, strict_mode=True)
    except binascii.Error:
        raise _broken() from None
    if len(piece) % 4 or (not last and len(decoded) != len(piece) // 4 * 3):
        raise _broken()
    return decoded


def decode_data_url(url: str, max_byte_count: int) -> bytes:
    """Decodes `data:[type][;name=value]...[;base64],...` without parsing it as a URL.

    URL parsers refuse or copy long texts; a data URL may have megabytes.

    Raises:
        BadMediaError: it has no comma, an overlong head or broken data.
        MediaTooLargeError: it decodes to more than `max_byte_count` bytes.
    """
    parameters, data = _split(url)
    if parameters[-1] == "base64":
        # A browser may have escaped the characters that base64 and URLs share.
        return decode_base64(_unescaped(data) if "%" in data else data, max_byte_count)
    if len(data) > 3 * max_byte_count:
        raise _too_large(max_byte_count)
    decoded = unquote_to_bytes(data)
    if not decoded:
        raise BadMediaError("The data URL is empty.")
    if len(decoded) > max_byte_count:
        raise _too_large(max_byte_count)
    return decoded


def decode_frames(url: str, max_byte_count: int) -> list[bytes] | None:
    """Decodes `data:video/jpeg;base64,FRAME,FRAME,...`, pictures that make up a video.

    Returns:
        The pictures' bytes in order; None where the URL is of another kind.

    Raises:
        BadMediaError: broken data.
        MediaTooLargeError: all pictures together have more than `max_byte_count` bytes, or
            there are too many.
    """
    parameters, data = _split(url)
    if parameters[0] not in _FRAME_TYPES or parameters[-1] != "base64":
        return None
    texts = (_unescaped(data) if "%" in data else data).split(",", _MAX_FRAMES)
    if len(texts) > _MAX_FRAMES:
        raise MediaTooLargeError(f"The video has more than {_MAX_FRAMES} frames.")
    frames: list[bytes] = []
    left = max_byte_count
    for text in texts:
        if left < 1:
            raise _too_large(max_byte_count)
        frames.append(decode_base64(text, left))
        left -= len(frames[-1])
    return frames


def _split(url: str) -> tuple[list[str], str]:
    """The type and the parameters of a data URL, and its data."""
    comma = url.find(",", 0, _MAX_HEAD_LENGTH)
    if comma < 0:
        raise BadMediaError("The data URL has no comma before its data.")
    return [part.strip() for part in url[len("data:") : comma].lower().split(";")], url[comma + 1 :]


def is_data_url(url: str) -> bool:
    """Says whether a text is a data URL; the scheme's case does not matter."""
    return url[:5].lower() == "data:"


def _unescaped(data: str) -> str:
    return unquote_to_bytes(data).decode("latin-1")


def _broken() -> BadMediaError:
    return BadMediaError("The data is not valid base64.")


def _too_large(limit: int) -> MediaTooLargeError:
    return MediaTooLargeError(f"The media file is larger than {limit} bytes.")
