"""How Qwen2.5-Omni reads a video with its sound: cut at the same times, a piece of each in turn.

Knows steps of time and rows. Knows neither weights nor token ids, and imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError
from shared.families.items import Grid, MediaInfo

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clock:
    """How time becomes positions.

    Attributes:
        steps_per_second: positions in a second (`position_id_per_seconds`).
        seconds_per_chunk: seconds of a piece.
    """

    steps_per_second: float
    seconds_per_chunk: float

    @property
    def steps_per_chunk(self) -> int:
        """Positions of a piece."""
        return int(self.steps_per_second * self.seconds_per_chunk)

    def steps(self, count: int, seconds_per_grid: float) -> Rows:
        """Where groups of frames lie, in positions from the first.

        In single precision, and cut off, as in transformers: other roundings give other positions.
        """
        seconds = np.arange(count).astype(np.float32) * np.float32(seconds_per_grid)
        return (seconds * np.float32(self.steps_per_second)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """A video's rows with those of its sound among them.

    Attributes:
        of_sound: for every row of the item, in the prompt's order, whether it is of the sound.
        places: for every row, its place among the rows of its own kind.
        last_piece: rows at the end that are read as one piece.
    """

    of_sound: npt.NDArray[np.bool_]
    places: Rows
    last_piece: int


def order_of(info: MediaInfo, merge_size: int, clock: Clock) -> Order:
    """Lays out the rows of a video that is taken with its sound.

    Raises:
        InvalidRequestError: the rows do not add up, or there is more than one grid.
    """
    grid = only_grid(info)
    seen = grid.time * grid.height * grid.width // merge_size**2
    if seen + info.sound_row_count != info.row_count or info.sound_row_count < 1:
        raise InvalidRequestError(
            f"a video has {info.row_count} rows; {seen} are seen and {info.sound_row_count} heard"
        )
    per_step = seen // grid.time
    seconds = 1.0 if info.seconds_per_grid is None else info.seconds_per_grid
    times = np.repeat(clock.steps(grid.time, seconds), per_step)
    pieces: list[tuple[bool, Rows]] = []
    frames = _pieces(times, clock.steps_per_chunk)
    sounds = _pieces(np.arange(info.sound_row_count), clock.steps_per_chunk)
    for index in range(max(len(frames), len(sounds))):
        pieces += [(False, frames[index])] if index < len(frames) else []
        pieces += [(True, sounds[index])] if index < len(sounds) else []
    return Order(
        np.concatenate([np.full(len(rows), heard) for heard, rows in pieces]),
        np.concatenate([rows for _, rows in pieces]),
        len(pieces[-1][1]),
    )


def only_grid(info: MediaInfo) -> Grid:
    """The grid of an item that has one.

    Raises:
        InvalidRequestError: it has none, or several.
    """
    if len(info.grids) != 1:
        raise InvalidRequestError("a video with its sound has one grid")
    return info.grids[0]


def _pieces(times: Rows, steps: int) -> list[Rows]:
    """Cuts rows where their time passes the end of a piece; where a video jumps, at most once a row."""
    pieces: list[Rows] = []
    start, end = 0, steps
    for index, time in enumerate(times.tolist()):
        if time >= end:
            pieces.append(np.arange(start, index))
            start, end = index, end + steps
    pieces.append(np.arange(start, len(times)))
    return pieces
