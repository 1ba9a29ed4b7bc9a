"""InternVL's prompt: tags around the rows of a picture, and around those of each frame of a video.

Knows texts, runs of rows and positions. Does not know how many rows a tile has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, MediaInfo, Modality
from shared.families.grown_rows import Run, grow_rows


@dataclass(frozen=True, slots=True)
class InternVLLayout:
    """Writes tags around the rows of a picture and of each frame of a video; one rotary axis.

    Attributes:
        row_id: token id of the placeholder of a picture, which is also that of a row.
        begin, row, end: texts of the tokens before, of and after a run of rows.
        video: what stands for a video in plain text.
    """

    row_id: int
    begin: str = "<img>"
    row: str = "<IMG_CONTEXT>"
    end: str = "</img>"
    video: str = "<video>"

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout` and `WritesItems`. No id of a video's placeholder reaches the model."""
        return {"image": self.row_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return {"image": self.row, "video": self.video}[modality]

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`. One token stands for all rows of a picture, one for those of each frame."""
        run = f"{self.begin}{self.row}{self.end}"
        if modality == "image":
            return run
        return "\n".join(f"Frame{number}: {run}" for number in range(1, _run_count(info) + 1))

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        runs = [run for item, info in enumerate(media) for run in _runs(item, info)]
        return grow_rows(token_ids, self.row_id, runs)


def _run_count(info: MediaInfo) -> int:
    """Runs of rows of an item: one for a picture, one for each frame of a video."""
    return sum(grid.time for grid in info.grids)


def _runs(item: int, info: MediaInfo) -> list[Run]:
    """The runs of an item: its index, the first row and the number of rows of each.

    Raises:
        InvalidRequestError: the rows are no multiple of the runs.
    """
    count = _run_count(info)
    if not count or info.row_count % count:
        raise InvalidRequestError(
            f"item {item} has {info.row_count} rows in {count} frames", param=f"media[{item}]"
        )
    length = info.row_count // count
    return [(item, first, length) for first in range(0, info.row_count, length)]
