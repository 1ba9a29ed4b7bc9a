"""Which frames of a video are taken.

Knows `media_io` settings and counts. Does not know how frames are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import InvalidRequestError

DEFAULT_FRAME_COUNT = 32
"""Frames of a video whose settings say nothing, as elsewhere."""

_PARAM = "item.settings.media_io"
_MOST_STEPS = 1_000_000
_CLOCK_S = 1e-3
"""What a frame's time may be off: Matroska's clock counts milliseconds."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How frames are chosen.

    Attributes:
        frame_count: most frames, spread evenly; None for all.
        rate: one frame each 1/rate seconds; None for no such rule.
        max_frame_count: most frames that the service takes, spread evenly likewise.
    """

    frame_count: int | None
    rate: float | None
    max_frame_count: int

    @classmethod
    def of(cls, settings: object, max_frame_count: int, own_rate: float | None = None) -> Sampling:
        """Reads the `media_io` settings of a video.

        `num_frames` (-1 for all) and `fps`. One of them alone replaces the default;
        both together are a rate with a bound.

        Args:
            own_rate: frames a second that the model was made for, where its checkpoint
                says so; the default in the place of a number.

        Raises:
            InvalidRequestError: an unknown name or a senseless value, or more frames
                than the service takes.
        """
        if not isinstance(settings, dict):
            raise InvalidRequestError("media_io must be a JSON object", param=_PARAM)
        for name in settings:
            if name not in ("num_frames", "fps"):
                raise InvalidRequestError(
                    f"unknown setting {str(name)[:64]!r} of media_io; there are num_frames and fps",
                    param=_PARAM,
                )
        implied = own_rate if own_rate is not None and not settings else -1
        rate = _rate(settings.get("fps", implied))
        default = min(DEFAULT_FRAME_COUNT, max_frame_count) if rate is None else -1
        return cls(_frame_count(settings.get("num_frames", default), max_frame_count), rate, max_frame_count)

    def indices(self, times: Sequence[float]) -> list[int]:
        """Chooses from frames that are seen at `times`, in seconds, rising. Returns their places, rising."""
        chosen = range(len(times)) if self.rate is None else _at_rate(times, self.rate)
        most = self.max_frame_count
        if self.frame_count is not None:
            most = min(most, self.frame_count)
        return [chosen[place] for place in spread(len(chosen), most)]


def spread(total: int, most: int) -> list[int]:
    """Places of up to `most` of `total` things, even from the first to the last, rounded down."""
    if total <= most:
        return list(range(total))
    return [int(place) for place in np.linspace(0, total - 1, most, dtype=np.int64)]


def _at_rate(times: Sequence[float], rate: float) -> Sequence[int]:
    """The frame that is on the screen at 0, 1/rate, 2/rate, ... seconds after the first."""
    seen = np.asarray(times, np.float64) - times[0]
    steps = (seen[-1] + _CLOCK_S) * rate
    if steps > _MOST_STEPS:
        return range(len(times))
    places = np.searchsorted(seen, np.arange(math.floor(steps) + 1) / rate + _CLOCK_S, side="right") - 1
    return [int(place) for place in np.unique(places)]


def _rate(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError("fps is a number above 0, or -1", param=f"{_PARAM}.fps")
    if value == -1:
        return None
    if value <= 0:
        raise InvalidRequestError("fps is a number above 0, or -1", param=f"{_PARAM}.fps")
    return float(value)


def _frame_count(value: object, most: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise InvalidRequestError(
            "num_frames is a whole number of at least 1, or -1 for all", param=f"{_PARAM}.num_frames"
        )
    if value > most:
        raise InvalidRequestError(
            f"num_frames is {value}; at most {most} frames are taken", param=f"{_PARAM}.num_frames"
        )
    return None if value == -1 else value
