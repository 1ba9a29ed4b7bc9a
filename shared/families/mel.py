"""Log-mel spectrograms of Whisper's kind, with NumPy alone.

Knows the arithmetic of transformers' `WhisperFeatureExtractor` and its settings.
Does not know towers, nor where one clip of a family ends and the next begins.
transformers itself computes them in torch, which workers have not: the numbers
here are float32 too, and differ from its own as one Fourier transform in single
precision does from another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint

_FLOOR = 1e-10
_RANGE = 8.0
"""Decades below a clip's loudest band that are told apart."""

_FRAMES_AT_ONCE = 4096
"""Frames that are transformed together: what they take on the way stays below 30 MB."""


class LogMel:
    """One checkpoint's spectrograms.

    Attributes:
        sampling_rate: samples a second.
        hop_length: samples from one frame to the next.
        mel_count: bands.
        most_samples: samples that the extractor pads to, or cuts at.
        pads_in_front: it pads in front of a clip, not behind it.
    """

    def __init__(self, extractor: Any) -> None:
        """Args:
        extractor: a `WhisperFeatureExtractor`.
        """
        self.sampling_rate = int(extractor.sampling_rate)
        self.hop_length = int(extractor.hop_length)
        self.mel_count = int(extractor.feature_size)
        self.most_samples = int(extractor.n_samples)
        self.pads_in_front = extractor.padding_side == "left"
        self._window_length = int(extractor.n_fft)
        steps = np.arange(self._window_length) * (2 * np.pi / self._window_length)
        self._window = (0.5 - 0.5 * np.cos(steps)).astype(np.float32)
        self._bands = np.ascontiguousarray(extractor.mel_filters.T, np.float32)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LogMel:
        """Reads the settings of a checkpoint's feature extractor.

        Raises:
            InvalidRequestError: there are none, or they are not of this kind.
        """
        from transformers import WhisperFeatureExtractor

        try:
            extractor = WhisperFeatureExtractor.from_pretrained(checkpoint.folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InvalidRequestError(
                f"{checkpoint.folder} has no usable feature extractor: {reason}"
            ) from error
        if extractor.dither:
            raise InvalidRequestError(f"{checkpoint.folder}: a feature extractor with dither is not served")
        return cls(extractor)

    def frame_count(self, sample_count: int) -> int:
        """Frames that hold something of a clip which is padded: those that the extractor's mask marks.

        It marks frames whose first new sample is the clip's.
        """
        if self.pads_in_front:
            return self.most_samples // self.hop_length - self._first_frame(sample_count)
        return -(-sample_count // self.hop_length)

    def heard(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The frames of a clip that the extractor's mask marks, of its spectrogram padded to `most_samples`.

        Returns:
            float32 (mel_count, `frame_count` of the samples).
        """
        if not self.pads_in_front:
            return self(samples, self.most_samples)[:, : self.frame_count(len(samples))]
        # From as many frames before the marked ones as reach into the clip: they count for the loudest.
        first = self._first_frame(len(samples))
        before = min(first, -(-self._window_length // (2 * self.hop_length)) + 1)
        start = (first - before) * self.hop_length
        silence = self.most_samples - len(samples) - start
        return self(np.pad(samples, (silence, 0)))[:, before:]

    def _first_frame(self, sample_count: int) -> int:
        return -(-(self.most_samples - sample_count) // self.hop_length)

    def __call__(
        self, samples: npt.NDArray[np.float32], padded: int | None = None
    ) -> npt.NDArray[np.float32]:
        """The spectrogram of one clip.

        Args:
            samples: mono, (samples,).
            padded: samples that zeros behind the clip make it; None: none are put there.
                A clip that is not padded needs more than half a window of samples.

        Returns:
            float32 (mel_count, frames), with a frame for every whole hop of what is padded.
        """
        total = len(samples) if padded is None else padded
        assert total >= len(samples), "padding only adds"
        frames = total // self.hop_length
        half = self._window_length // 2
        # Behind the last frame that reaches into the clip, all frames are the floor.
        heard = min(frames, -(-(len(samples) + half) // self.hop_length))
        spectrum = np.full((self.mel_count, frames), np.log10(_FLOOR), np.float32)
        padded_clip = self._with_edges(samples, total, heard)
        for first in range(0, heard, _FRAMES_AT_ONCE):
            last = min(first + _FRAMES_AT_ONCE, heard)
            spectrum[:, first:last] = self._logarithms(padded_clip, first, last)
        if frames:
            np.maximum(spectrum, spectrum.max() - np.float32(_RANGE), out=spectrum)
        return (spectrum + np.float32(4)) / np.float32(4)

    def _with_edges(
        self, samples: npt.NDArray[np.float32], total: int, heard: int
    ) -> npt.NDArray[np.float32]:
        """The padded clip as far as the heard frames reach, half a window mirrored at its edges."""
        half = self._window_length // 2
        reach = min(total, heard * self.hop_length + self._window_length)
        clip = np.pad(samples.astype(np.float32, copy=False), (0, max(0, reach - len(samples))))
        if reach == total:
            return np.pad(clip, half, mode="reflect")
        return np.pad(np.pad(clip, (half, 0), mode="reflect"), (0, half))

    def _logarithms(self, clip: npt.NDArray[np.float32], first: int, last: int) -> npt.NDArray[np.float32]:
        windows = np.lib.stride_tricks.sliding_window_view(clip, self._window_length)
        chosen = windows[first * self.hop_length : last * self.hop_length : self.hop_length]
        power = np.abs(np.fft.rfft(chosen[: last - first] * self._window, axis=1)) ** 2
        bands = self._bands @ power.T.astype(np.float32, copy=False)
        return np.log10(np.maximum(bands, np.float32(_FLOOR), dtype=np.float32))
