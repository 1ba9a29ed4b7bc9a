"""Where a long recording is cut: at quiet points, into pieces that a model hears at once.

Knows samples. Does not know what is said in them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SHARE = 5
"""A piece may end in the last fifth of what a model hears; no piece is shorter than that."""

_WINDOW_S = 0.1
"""What must be quiet around a cut."""

_STEP_S = 0.01


def piece_starts(samples: npt.NDArray[np.float32], sampling_rate: int, most: int) -> list[int]:
    """The first sample of each piece; the first is 0.

    Args:
        samples: mono, (samples,).
        most: samples that one piece may have.
    """
    starts = [0]
    while len(samples) - starts[-1] > most:
        shortest = most // _SHARE
        earliest = starts[-1] + most - shortest
        # What is left over must not be too short either.
        latest = min(starts[-1] + most, len(samples) - shortest)
        starts.append(_quietest(samples, earliest, latest, sampling_rate))
    return starts


def _quietest(samples: npt.NDArray[np.float32], earliest: int, latest: int, sampling_rate: int) -> int:
    """The sample around which there is least energy; the last of several, for pieces are better long."""
    width, step = int(_WINDOW_S * sampling_rate), int(_STEP_S * sampling_rate)
    points = np.arange(latest, earliest - 1, -step)
    first = max(0, earliest - width)
    squares = np.square(samples[first : latest + width], dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(squares)])
    begin = np.clip(points - width // 2 - first, 0, len(squares))
    end = np.clip(points + width // 2 - first, 0, len(squares))
    # Sums are exact enough to tell silence from what is not, and no more.
    energy = np.round(sums[end] - sums[begin], 6)
    return int(points[np.argmin(energy)])
