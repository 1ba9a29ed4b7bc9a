"""Reads file:// URLs from one allowed folder.

A file that is missing and a file that may not be read give the same answer, so
that nobody learns from it which files there are.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote

from gateway.budget import Take
from shared.errors import MediaFetchError, MediaTooLargeError

_READ_SIZE = 1024 * 1024


def read_file_url(url: str, folder: Path | None, max_byte_count: int, take: Take) -> bytes:
    """Reads the file behind a `file:///path` URL. Blocks: run it in a thread.

    Raises:
        MediaFetchError: the file is missing, not a regular file, or not below `folder`
            once its symbolic links are resolved; or no folder is allowed.
        MediaTooLargeError: the file is over the limit.
        PerceptError: `take` refused the bytes of a piece.
    """
    if folder is None:
        raise _denied()
    try:
        path = _allowed_path(url, folder.resolve(strict=True))
        # The path is resolved: a last component that is a link now was put there since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, RuntimeError):
        raise _denied() from None
    try:
        return _read(descriptor, max_byte_count, take)
    except OSError:
        raise _denied() from None
    finally:
        os.close(descriptor)


def _allowed_path(url: str, folder: Path) -> Path:
    rest = url[len("file:") :]
    if not rest.startswith("//") or len(url) > 4096:
        raise ValueError("not a file URL with a path")
    host, slash, path = rest[2:].partition("/")
    if not slash or host.lower() not in ("", "localhost"):
        raise ValueError("a file URL of another host")
    found = Path("/" + unquote(path, errors="strict")).resolve(strict=True)
    if not found.is_relative_to(folder):
        raise ValueError("outside of the allowed folder")
    return found


def _read(descriptor: int, max_byte_count: int, take: Take) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _denied()
    content = bytearray()
    while chunk := os.read(descriptor, _READ_SIZE):
        if len(content) + len(chunk) > max_byte_count:
            raise MediaTooLargeError(f"The media file is larger than {max_byte_count} bytes.")
        take(len(chunk))
        content += chunk
    return bytes(content)


def _denied() -> MediaFetchError:
    return MediaFetchError(
        "The file cannot be read. Only files below --allowed-local-media-path can, where it is set.",
        code="media_file_not_allowed",
    )
