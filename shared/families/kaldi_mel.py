"""Log-mel spectrograms of Phi-4-multimodal's kind, with NumPy alone.

The arithmetic is that of transformers' `Phi4MultimodalFeatureExtractor`: frames that lie wholly
in the clip, each pre-emphasised by itself, a Hamming window, mels of Kaldi's kind. Knows settings and
samples. Does not know rows of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.families.extractor_settings import read_extractor_settings

_FULL_SCALE = 32768.0
_FRAMES_AT_ONCE = 4096

DEFAULTS: Mapping[str, Any] = {
    "feature_size": 80,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 512,
    "win_length": 400,
    "preemphasis": 0.97,
    "audio_compression_rate": 8,
    "audio_downsample_rate": 1,
    "audio_feat_stride": 1,
    "mel_min_frequency": 0,
    "mel_max_frequency": 7690,
}
KINDS = ("Phi4MultimodalFeatureExtractor", "Phi4MMAudioFeatureExtractor")
"""transformers' name, and the authors'."""


class KaldiMel:
    """One checkpoint's spectrograms.

    Attributes:
        sampling_rate: samples a second.
        mel_count: bands.
        fewest_samples: of a single frame.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Args:
        settings: by the extractor's names; what is missing is its own default.
        """
        from transformers.audio_utils import mel_filter_bank

        chosen = dict(DEFAULTS) | {
            name: settings[name] for name in DEFAULTS if settings.get(name) is not None
        }
        self.sampling_rate, self.mel_count = int(chosen["sampling_rate"]), int(chosen["feature_size"])
        self.fewest_samples = int(chosen["win_length"])
        self._hop, self._transform = int(chosen["hop_length"]), int(chosen["n_fft"])
        self._emphasis = np.float32(chosen["preemphasis"])
        self._steps = (int(chosen["audio_compression_rate"]), int(chosen["audio_downsample_rate"]))
        self._window = np.hamming(self.fewest_samples)
        self._bands = mel_filter_bank(
            num_frequency_bins=self._transform // 2 + 1,
            num_mel_filters=self.mel_count,
            min_frequency=chosen["mel_min_frequency"],
            max_frequency=chosen["mel_max_frequency"],
            sampling_rate=self.sampling_rate,
            triangularize_in_mel_space=True,
            mel_scale="kaldi",
        ).astype(np.float32)

    @classmethod
    def of(cls, folder: Path) -> KaldiMel:
        """Reads the settings of a checkpoint's extractor.

        Raises:
            InvalidRequestError: there are none, or they are not of this kind.
        """
        return cls(read_extractor_settings(folder, *KINDS))

    def row_count(self, frame_count: int) -> int:
        """Rows of a prompt for so many frames."""
        for step in self._steps:
            frame_count = -(-frame_count // step)
        return frame_count

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(samples,), at least `fewest_samples`, to float32 (frames, mel_count)."""
        clip = samples.astype(np.float32, copy=False)
        windows = np.lib.stride_tricks.sliding_window_view(clip, self.fewest_samples)[:: self._hop]
        spectrum = np.empty((len(windows), self.mel_count), np.float32)
        for first in range(0, len(windows), _FRAMES_AT_ONCE):
            chosen = windows[first : first + _FRAMES_AT_ONCE]
            spectrum[first : first + len(chosen)] = self._logarithms(chosen)
        return spectrum

    def _logarithms(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # What stands before a frame's first sample is taken for that sample itself.
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        emphasised = (frames - self._emphasis * before) * np.float32(_FULL_SCALE)
        spectrum = np.fft.rfft(self._window * emphasised, n=self._transform, axis=1).astype(np.complex64)
        power = np.abs(spectrum) ** 2
        logarithms: npt.NDArray[np.float32] = np.log(np.maximum(power @ self._bands, np.float32(1.0)))
        return logarithms
