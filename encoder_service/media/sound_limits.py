"""What one recording may cost, and the refusals of what costs more. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import BadMediaError, MediaTooLargeError

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Samples a second that a recording may have: beyond them it is no recording."""

MOST_CHANNELS = 64


class NoSoundError(Exception):
    """A file without a sound track, or with an empty one: no mistake where it is a video."""


@dataclass(frozen=True, slots=True)
class SoundLimits:
    """Bounds on one recording, each checked while it is decoded.

    Attributes:
        time_limit_s: seconds until the worker that has it is killed.
        max_duration_s: longest recording.
        max_sample_count: most samples, of all channels together, as they are in the file.
    """

    time_limit_s: float = 60.0
    max_duration_s: float = 3600.0
    max_sample_count: int = 500_000_000


class Meter:
    """Counts what was decoded of one recording."""

    def __init__(self, sampling_rate: int, channel_count: int, limits: SoundLimits) -> None:
        """
        Raises:
            BadMediaError: no recording has such a rate, or so many channels.
        """
        if not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
            raise BadMediaError(
                f"the recording has {sampling_rate} samples a second;"
                f" {LOWEST_RATE} to {HIGHEST_RATE} are accepted"
            )
        if not 1 <= channel_count <= MOST_CHANNELS:
            raise BadMediaError(
                f"the recording has {channel_count} channels; 1 to {MOST_CHANNELS} are accepted"
            )
        self.sampling_rate = sampling_rate
        self.channel_count = channel_count
        self.count = 0
        self._limits = limits

    def add(self, count: int) -> None:
        """Counts further samples of each channel.

        Raises:
            MediaTooLargeError: there are too many by now.
        """
        self.count += count
        if self.count > self._limits.max_duration_s * self.sampling_rate:
            raise MediaTooLargeError(
                f"the recording lasts longer than {self._limits.max_duration_s:g} s, which are accepted"
            )
        if self.count * self.channel_count > self._limits.max_sample_count:
            raise MediaTooLargeError(
                f"the recording has more than {self._limits.max_sample_count} samples, which are accepted"
            )
