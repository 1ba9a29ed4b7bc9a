"""Pictures by lot, as PNG, with nothing but the standard library.

Knows PNG's rows and filters. A picture is a mosaic of one-coloured squares: quick to
draw, unlike any other, and of a file size that the squares' side decides.
"""

from __future__ import annotations

import random
import struct
import zlib

CHANNELS = 3
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_LEFT, _FILTER_ABOVE = b"\x01", b"\x02"
# The fastest: a generator must not take the server's cores.
_COMPRESSION = 1


def draw_png(lot: str, width: int, height: int, cell: int) -> bytes:
    """Draws a mosaic; the same for the same `lot`.

    Args:
        lot: what the colours are drawn by.
        width: pixels.
        height: pixels.
        cell: side of a square in pixels; 1 is noise.

    Returns:
        A PNG file, 8 bits per channel, RGB.
    """
    rows = _filtered_rows(random.Random(lot), width, height, cell)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(rows, _COMPRESSION)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _filtered_rows(lots: random.Random, width: int, height: int, cell: int) -> bytes:
    """The pixels as PNG holds them: differences from the left, and within squares from above.

    Differences drawn evenly make colours drawn evenly, so no colour is ever computed.
    """
    across = -(-width // cell)
    same_as_left = bytes(CHANNELS * (cell - 1))
    same_as_above = _FILTER_ABOVE + bytes(CHANNELS * width)
    rows = []
    for top in range(0, height, cell):
        drawn = lots.randbytes(CHANNELS * across)
        squares = (drawn[at : at + CHANNELS] for at in range(0, len(drawn), CHANNELS))
        row = drawn if cell == 1 else b"".join(square + same_as_left for square in squares)
        rows.append(_FILTER_LEFT + row[: CHANNELS * width])
        rows.append(same_as_above * (min(cell, height - top) - 1))
    return b"".join(rows)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
