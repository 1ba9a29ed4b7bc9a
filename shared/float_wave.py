"""WAV files of 32-bit floating-point samples: how samples travel without loss.

Knows bytes alone, so that who has no NumPy may write one too.
"""

from __future__ import annotations

import struct

_FLOAT = 3
"""WAV's number for samples that are floating-point numbers, full scale at 1 (RFC 2361)."""

_SAMPLE_SIZE = 4


def float_wave(data: bytes | memoryview, rate: int, channels: int = 1) -> bytes:
    """Writes a file.

    Args:
        data: little-endian float32, the channels' samples in turn.
        rate: samples a second.
    """
    size = _SAMPLE_SIZE * channels
    form = struct.pack("<HHIIHH", _FLOAT, channels, rate, rate * size % 2**32, size, 8 * _SAMPLE_SIZE)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    return b"".join((b"RIFF", struct.pack("<I", len(head) + len(data)), head, data))
