"""Items of media as values: what was decoded, what a tower reads, what it gives, how rows are laid out.

Knows shapes. Knows no model, and importing it imports neither torch nor
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Modality = Literal["image", "video", "audio"]

MAIN_TENSOR = "embeds"
"""Name of an item's first tensor, whose rows stand in for placeholder tokens."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What an item was cut into: frames, rows and columns of patches or of tiles, as the family says."""

    time: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """The layout of an item's rows in a prompt.

    Attributes:
        row_count: embedding rows that the item yields, at least 1.
        grids: for families that need them to lay rows out, of patches before any
            merging or of tiles: one for a media file, n for precomputed embeddings
            of n pictures in one item, whose rows stand one after the other.
        image_size: height and width of the picture in pixels, where known.
        timestamps: of a video, when each of its frame groups is seen, in seconds
            from its start, for families that write it into the prompt.
        seconds_per_grid: of a video, seconds between two of its frame groups, for
            families that put it into positions.
        duration: of a video or a recording, its length in seconds, where known; some families
            write it into the prompt.
        sound_row_count: of a video that is taken with its sound, how many of the rows are
            the sound's.
    """

    row_count: int
    grids: tuple[Grid, ...] = ()
    image_size: tuple[int, int] | None = None
    timestamps: tuple[float, ...] = ()
    seconds_per_grid: float | None = None
    duration: float | None = None
    sound_row_count: int = 0


@dataclass(frozen=True, slots=True)
class AudioClip:
    """A decoded recording.

    Attributes:
        samples: mono, float32 (samples,), at least one, full scale at -1 and 1, which
            louder ones may pass.
        sampling_rate: samples a second.
    """

    samples: npt.NDArray[np.float32]
    sampling_rate: int

    @property
    def duration(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / self.sampling_rate


@dataclass(frozen=True, slots=True)
class VideoClip:
    """Frames that were taken from a video.

    Attributes:
        frames: RGB, uint8 (frames, height, width, 3), at least one.
        indices: place of each in the whole video, rising.
        frame_count: frames of the whole video.
        frames_per_second: of the whole video.
        sound: of the whole video, where it was asked for.
    """

    frames: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    frame_count: int
    frames_per_second: float
    sound: AudioClip | None = None

    @property
    def times(self) -> tuple[float, ...]:
        """When each frame is seen, in seconds."""
        return tuple(index / self.frames_per_second for index in self.indices)

    @property
    def sampled_rate(self) -> float:
        """Frames taken per second of the video."""
        return len(self.indices) / self.frame_count * self.frames_per_second


@dataclass(slots=True)
class Features:
    """One preprocessed item: what a tower reads. Crosses a process boundary.

    Attributes:
        info: the layout of the rows to come.
        arrays: inputs of the tower by name, for example `pixel_values`
            float32 (patches, channels x patch area).
        token_cost: size of the item in the tower's own tokens (patches), for
            the batcher's budget.
    """

    info: MediaInfo
    arrays: dict[str, npt.NDArray[Any]]
    token_cost: int


@dataclass(slots=True)
class RawTensor:
    """A tensor as it came off the wire or out of a file, not yet trusted.

    Attributes:
        data_type: "float32", "float16", "bfloat16" or "int64".
        shape: sizes, outermost first.
        data: little-endian row-major bytes, exactly as many as type and shape
            imply. bfloat16 has no NumPy dtype, hence bytes.
    """

    data_type: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(slots=True)
class EncodedItem:
    """One item's embeddings: named tensors whose dimension 0 counts rows."""

    info: MediaInfo
    tensors: dict[str, RawTensor]
