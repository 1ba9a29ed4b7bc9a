"""Samples to recording files without loss: arrays to WAV.

Knows NumPy by the arrays it is given. Does not know what a recording is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import BadMediaError
from shared.float_wave import float_wave

if TYPE_CHECKING:
    import numpy.typing as npt

_MOST_CHANNELS = 64
_RATES = (1, 2**31)


def wave_of_array(array: npt.NDArray[Any], rate: float) -> bytes:
    """Writes samples as 32-bit floating-point numbers.

    Args:
        array: (samples,), (channels, samples) or (samples, channels), the shorter side being the
            channels; floats, full scale at 1, or signed integers, full scale at their type's.
        rate: samples a second.

    Raises:
        BadMediaError: another type or shape, no samples, or a rate that is no whole number.
    """
    fits = array.ndim == 1 or (array.ndim == 2 and min(array.shape) <= _MOST_CHANNELS)
    if not fits or not array.size:
        raise BadMediaError(f"samples are (samples,) or (channels, samples); the array is {array.shape}")
    if rate != int(rate) or not _RATES[0] <= rate < _RATES[1]:
        raise BadMediaError(f"a sampling rate is a whole number of samples a second; it is {rate}")
    samples = _numbers(array)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    channels = samples.shape[1] if samples.ndim == 2 else 1
    data = np.ascontiguousarray(samples, "<f4").tobytes()
    return float_wave(data, int(rate), channels)


def _numbers(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise BadMediaError(f"samples are floats or signed integers; the array is {array.dtype}")
