"""Pixels to picture files without loss: PIL pictures and arrays to PNG.

Knows Pillow, and NumPy by the arrays it is given. Does not know what a picture is for.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.errors import BadMediaError

if TYPE_CHECKING:
    import numpy.typing as npt

_KEPT_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
"""What PNG holds as it is."""

_FAST = 1
"""zlib's level: higher ones take several times as long and save a tenth."""

_CHANNELS = (1, 3, 4)

_READING = threading.Lock()


def png_of_picture(picture: Image.Image) -> bytes:
    """Writes a picture's pixels as they stand: metadata such as an EXIF orientation is left out.

    Raises:
        BadMediaError: its file is broken, or its mode has no counterpart among file formats.
    """
    # Pillow reads a file when its pixels are first asked for, and prompts that share a
    # picture ask from several threads at once.
    with _READING:
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise BadMediaError(f"the picture cannot be read: {error}") from error
    if picture.mode not in _KEPT_MODES:
        if picture.mode == "F":
            raise BadMediaError("a picture of mode F has no fixed range; convert it first")
        picture = picture.convert("RGBA" if picture.mode in ("RGBa", "PA", "La") else "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=_FAST)
    return buffer.getvalue()


def png_of_array(array: npt.NDArray[Any]) -> bytes:
    """Writes uint8 (height, width), or (height, width, channels) with 1, 3 or 4 channels.

    Raises:
        BadMediaError: another type or shape.
    """
    if array.dtype != np.uint8:
        raise BadMediaError(f"pixels are uint8 (0 to 255); the array is {array.dtype}")
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if not fits or not array.size:
        raise BadMediaError(
            f"an array of pixels is (height, width) or (height, width, channels) with {_CHANNELS} channels;"
            f" it is {array.shape}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return png_of_picture(Image.fromarray(np.ascontiguousarray(array)))
