"""Samples of 16 and 32 bits to 8, by scale and never by clipping.

Knows Pillow's integer modes and where a TIFF says how deep its samples are. Does
not know colour: these modes are all grey.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import UnsupportedMediaError

_BITS_PER_SAMPLE = 258
_SAMPLE_FORMAT = 339
_SIGNED = 2

_PART_LENGTH = 1 << 20
"""Samples that are scaled at once."""


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Returns the picture in a mode of 8 bits per sample (itself, where it has them).

    A full-scale sample becomes 255: 40000 of 65535 becomes 156.

    Raises:
        UnsupportedMediaError: floating-point samples, whose range no file tells.
    """
    if picture.mode == "F":
        raise UnsupportedMediaError("pictures with floating-point samples are not accepted")
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    bits, signed = _depth(picture)
    samples = np.asarray(picture)
    transparent = picture.info.get("transparency")
    grey = np.empty(samples.shape, np.uint8)
    alpha = np.full(samples.shape, 255, np.uint8) if isinstance(transparent, int) else None
    # By parts, since a value takes eight bytes on its way.
    for part in _parts(samples.shape):
        values = _values(samples[part], bits, signed)
        grey[part] = _scaled(values, 2 ** (bits - signed) - 1)
        if alpha is not None:
            alpha[part][values == transparent] = 0
    if alpha is None:
        return Image.fromarray(grey)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    row_count = max(1, _PART_LENGTH // shape[1])
    for start in range(0, shape[0], row_count):
        yield slice(start, start + row_count)


def _depth(picture: Image.Image) -> tuple[int, bool]:
    """Bits per sample as stored, and whether they are signed."""
    tags = getattr(picture, "tag_v2", {})
    default = 16 if picture.mode.startswith("I;16") else 32
    bits = _first(tags.get(_BITS_PER_SAMPLE), default)
    return bits, _first(tags.get(_SAMPLE_FORMAT), 1) == _SIGNED


def _first(value: object, default: int) -> int:
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default


def _values(samples: npt.NDArray[np.integer], bits: int, signed: bool) -> npt.NDArray[np.int64]:
    # Pillow keeps unsigned 32-bit samples in a signed type: the bits are right.
    if bits == 32 and not signed:
        return samples.astype(np.int32).view(np.uint32).astype(np.int64)
    return samples.astype(np.int64)


def _scaled(values: npt.NDArray[np.int64], full_scale: int) -> npt.NDArray[np.uint8]:
    positive = np.clip(values, 0, full_scale)
    return ((positive * 255 + full_scale // 2) // full_scale).astype(np.uint8)
