"""Prompt layout with three rotary axes (time, height, width), as in the Qwen-VL families.

Knows how placeholders grow and where their positions lie. Knows no weights and
imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, Grid, MediaInfo, Modality, Span

AXES = 3
MAX_POSITION = 1 << 24
"""Up to here every position is a number of its own in single precision, in which angles are computed."""


@dataclass(frozen=True, slots=True)
class MRopeLayout:
    """Grows `<|image_pad|>` to a picture's rows, and `<|video_pad|>` to a video's.

    Attributes:
        image_id: token id of a picture's placeholder.
        video_id: token id of a video's placeholder.
        start_id: token id in front of a picture or a video.
        end_id: token id behind it.
        merge_size: patches per row of embeddings, along one side.
        steps_per_second: how far apart on the time axis lie two groups of frames
            that are a second apart; None: always one step.
    """

    image_id: int
    video_id: int
    start_id: int
    end_id: int
    merge_size: int
    steps_per_second: float | None = None

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id, "video": self.video_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return f"<|vision_start|><|{modality}_pad|><|vision_end|>"

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (3, tokens).

        An item of several pictures or videos reads as if the template had put each
        of them between its own start and end tokens.
        """
        pads = (self.image_id, self.video_id)
        places = [place for place, token_id in enumerate(token_ids) if token_id in pads]
        if len(places) != len(media):
            raise InvalidRequestError(f"the prompt has {len(places)} placeholders for {len(media)} items")
        draft = Draft(self.merge_size)
        start = 0
        for item, (info, place) in enumerate(zip(media, places, strict=True)):
            draft.add_text(token_ids[start:place])
            self._add_item(draft, item, info, token_ids[place])
            start = place + 1
        draft.add_text(token_ids[start:])
        return draft.finish()

    def row_counts(self, grids: Sequence[Grid]) -> list[int]:
        """Rows of each picture or video."""
        return [grid.time * grid.height * grid.width // self.merge_size**2 for grid in grids]

    def _add_item(self, draft: Draft, item: int, info: MediaInfo, pad_id: int) -> None:
        counts = self.row_counts(info.grids)
        if sum(counts) != info.row_count or not counts:
            raise InvalidRequestError(
                f"item {item} has {info.row_count} rows; its grids imply {sum(counts)}",
                param=f"media[{item}]",
            )
        time_step = self._time_step(info) if pad_id == self.video_id else 1.0
        first_row = 0
        for grid, count in zip(info.grids, counts, strict=True):
            if first_row:
                draft.add_text([self.end_id, self.start_id])
            span = Span(item, start=len(draft.token_ids), length=count, first_row=first_row)
            draft.add_rows(pad_id, span, grid, time_step)
            first_row += count

    def _time_step(self, info: MediaInfo) -> float:
        if self.steps_per_second is None:
            return 1.0
        seconds = 1.0 if info.seconds_per_grid is None else info.seconds_per_grid
        return self.steps_per_second * float(np.float32(seconds))


class Draft:
    """An expanded prompt with three axes in the making."""

    def __init__(self, merge_size: int) -> None:
        self.token_ids: list[int] = []
        self._merge_size = merge_size
        self._spans: list[Span] = []
        self._pieces: list[npt.NDArray[np.int64]] = []
        self._text_count = 0
        self._next = 0

    def add_text(self, token_ids: Sequence[int]) -> None:
        self.token_ids.extend(token_ids)
        self._text_count += len(token_ids)

    def add_rows(self, pad_id: int, span: Span, grid: Grid, time_step: float) -> None:
        """The rows of a picture or a video: on each axis they count up from one position.

        The text behind them starts after the longer side, however long the video is.
        """
        self._flush_text()
        height, width = grid.height // self._merge_size, grid.width // self._merge_size
        axes = np.indices((grid.time, height, width), dtype=np.int64).reshape(AXES, -1)
        # In single precision and cut off, as in transformers: other roundings give other positions.
        axes[0] = (axes[0].astype(np.float32) * np.float32(time_step)).astype(np.int64)
        self._pieces.append(axes + self._next)
        self._next += max(height, width)
        self.token_ids.extend([pad_id] * span.length)
        self._spans.append(span)

    def finish(self) -> ExpandedPrompt:
        self._flush_text()
        empty = np.zeros((AXES, 0), dtype=np.int64)
        positions = np.concatenate([empty, *self._pieces], axis=1)
        next_position = int(positions.max(initial=-1)) + 1
        if next_position > MAX_POSITION:
            raise InvalidRequestError(
                f"a video's time leads to position {next_position}, beyond {MAX_POSITION}"
            )
        return ExpandedPrompt(self.token_ids, self._spans, positions, next_position)

    def _flush_text(self) -> None:
        run = np.arange(self._next, self._next + self._text_count, dtype=np.int64)
        self._pieces.append(np.broadcast_to(run, (AXES, self._text_count)))
        self._next += self._text_count
        self._text_count = 0


def check_placeholder_count(token_ids: Sequence[int], placeholder_id: int, media_count: int) -> None:
    """Raises InvalidRequestError where placeholders and media differ in number."""
    count = token_ids.count(placeholder_id)
    if count != media_count:
        raise InvalidRequestError(f"the prompt has {count} image placeholders for {media_count} images")
