"""Log-mel spectrograms of Granite Speech's kind, with NumPy alone: two frames side by side in a row.

The arithmetic is that of transformers' `GraniteSpeechFeatureExtractor` over torchaudio's
`MelSpectrogram`: a Hann window in the middle of a longer transform, edges mirrored, mels of the
HTK kind, decades below a clip's loudest band cut off. Knows settings and samples. Does not
know rows of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.families.extractor_settings import read_extractor_settings

_FLOOR = 1e-10
_RANGE = 8.0
_FRAMES_AT_ONCE = 4096

DEFAULTS: Mapping[str, int] = {
    "sampling_rate": 16_000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": 80,
}


class PairedMel:
    """One checkpoint's spectrograms.

    Attributes:
        sampling_rate: samples a second.
        width: numbers in a row, twice the bands.
        fewest_samples: with fewer, edges cannot be mirrored.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Args:
        settings: by the extractor's names; what is missing is its own default.
        """
        from transformers.audio_utils import mel_filter_bank

        chosen = {name: int(settings.get(name) or default) for name, default in DEFAULTS.items()}
        chosen["n_mels"] = int(settings.get("feature_size") or chosen["n_mels"])
        self.sampling_rate, self._hop = chosen["sampling_rate"], chosen["hop_length"]
        self._length = chosen["n_fft"]
        self.width = 2 * chosen["n_mels"]
        self.fewest_samples = self._length // 2 + 1
        self._window = _centred_window(chosen["win_length"], self._length)
        bands = mel_filter_bank(
            self._length // 2 + 1,
            chosen["n_mels"],
            0.0,
            float(self.sampling_rate // 2),
            self.sampling_rate,
            norm=None,
            mel_scale="htk",
        )
        self._bands = np.ascontiguousarray(bands.T, np.float32)

    @classmethod
    def of(cls, folder: Path) -> PairedMel:
        """Reads the settings of a checkpoint's extractor.

        Raises:
            InvalidRequestError: there are none, or they are not of this kind.
        """
        return cls(read_extractor_settings(folder, "GraniteSpeechFeatureExtractor"))

    def row_count(self, sample_count: int) -> int:
        """Rows of a clip: pairs of frames, of which there is one for every hop and one more."""
        return (sample_count // self._hop + 1) // 2

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(samples,), at least `fewest_samples`, to float32 (rows, width)."""
        half = self._length // 2
        padded = np.pad(samples.astype(np.float32, copy=False), half, mode="reflect")
        frames = len(samples) // self._hop + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._length)[:: self._hop]
        bands = np.empty((frames, self.width // 2), np.float32)
        for first in range(0, frames, _FRAMES_AT_ONCE):
            chosen = windows[first : min(first + _FRAMES_AT_ONCE, frames)]
            power = np.abs(np.fft.rfft(chosen * self._window, axis=1)) ** 2
            bands[first : first + len(chosen)] = power.astype(np.float32, copy=False) @ self._bands.T
        logarithms = np.log10(np.maximum(bands, np.float32(_FLOOR)))
        # A last frame without a second counts for the loudest all the same.
        cut_off = np.maximum(logarithms, logarithms.max() - np.float32(_RANGE))
        rows: npt.NDArray[np.float32] = cut_off / np.float32(4) + np.float32(1)
        return rows[: frames // 2 * 2].reshape(-1, self.width)


def _centred_window(length: int, transform: int) -> npt.NDArray[np.float32]:
    """A periodic Hann window with zeros at both sides."""
    window = (0.5 - 0.5 * np.cos(np.arange(length) * (2 * np.pi / length))).astype(np.float32)
    before = (transform - length) // 2
    return np.pad(window, (before, transform - length - before))
