"""Recordings of noise for measurements. Knows samples and WAV files."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import numpy.typing as npt

RATE = 16_000
"""Samples a second."""


def noise(seed: int, seconds: float) -> npt.NDArray[np.float32]:
    """A recording of noise, another for each seed: float32 (samples,), as a 16-bit file holds it."""
    return _samples(seed, seconds).astype(np.float32) / np.float32(32_768)


def noise_wav(seed: int, seconds: float) -> str:
    """The same as base64 of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(RATE)
        target.writeframes(_samples(seed, seconds).tobytes())
    return base64.b64encode(file.getvalue()).decode()


def _samples(seed: int, seconds: float) -> npt.NDArray[np.int16]:
    count = round(seconds * RATE)
    return np.random.default_rng(seed).integers(-8192, 8192, count, dtype=np.int16)
