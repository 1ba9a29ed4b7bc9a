"""Prompt layout of Qwen2.5-Omni: three rotary axes over text, pictures, videos, recordings and heard videos.

Knows how placeholders grow and where their positions lie: those that transformers gives. Knows no weights and
imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, Grid, MediaInfo, Modality, Span
from shared.families.heard_videos import Clock, only_grid, order_of
from shared.families.mrope import AXES, MAX_POSITION

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OmniIds:
    """Token ids: what stands for an item, and what stands around one."""

    image: int
    video: int
    audio: int
    vision_start: int
    vision_end: int
    audio_start: int
    audio_end: int


@dataclass(frozen=True, slots=True)
class OmniLayout:
    """Grows an item's placeholder, `<|IMAGE|>` for example, to its rows.

    Attributes:
        ids: of placeholders and marks.
        merge_size: patches per row of embeddings, along one side.
        clock: how a video's time becomes positions.
        named: texts of placeholders and marks where they are not Qwen2.5-Omni's, by the names
            that the tokenizer's configuration has for them.
    """

    ids: OmniIds
    merge_size: int
    clock: Clock
    named: Mapping[str, str] = field(default_factory=dict)

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.ids.image, "video": self.ids.video, "audio": self.ids.audio}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        kind = "audio" if modality == "audio" else "vision"
        usual = {
            f"{kind}_bos_token": f"<|{kind}_bos|>",
            f"{modality}_token": f"<|{modality.upper()}|>",
            f"{kind}_eos_token": f"<|{kind}_eos|>",
        }
        return "".join(self.named.get(name, text) for name, text in usual.items())

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (3, tokens)."""
        pads = {pad: modality for modality, pad in self.placeholder_ids().items()}
        places = [place for place, token_id in enumerate(token_ids) if token_id in pads]
        if len(places) != len(media):
            raise InvalidRequestError(f"the prompt has {len(places)} placeholders for {len(media)} items")
        draft = _Draft()
        start = 0
        for item, (info, place) in enumerate(zip(media, places, strict=True)):
            draft.add_text(token_ids[start:place])
            self._add_item(draft, item, info, pads[token_ids[place]])
            start = place + 1
        draft.add_text(token_ids[start:])
        return draft.finish()

    def _add_item(self, draft: _Draft, item: int, info: MediaInfo, modality: Modality) -> None:
        if modality == "audio":
            counted = np.broadcast_to(np.arange(info.row_count), (AXES, info.row_count))
            draft.add_rows(item, 0, [self.ids.audio] * info.row_count, counted, info.row_count)
        elif info.sound_row_count:
            self._add_heard_video(draft, item, info)
        else:
            self._add_seen(draft, item, info, modality)

    def _add_seen(self, draft: _Draft, item: int, info: MediaInfo, modality: Modality) -> None:
        """Pictures or videos; several in one item read as if each stood between marks of its own."""
        counts = [grid.time * grid.height * grid.width // self.merge_size**2 for grid in info.grids]
        if sum(counts) != info.row_count or not counts:
            raise InvalidRequestError(
                f"item {item} has {info.row_count} rows; its grids imply {sum(counts)}",
                param=f"media[{item}]",
            )
        pad = self.ids.image if modality == "image" else self.ids.video
        seconds = 1.0 if modality == "image" or info.seconds_per_grid is None else info.seconds_per_grid
        first_row = 0
        for grid, count in zip(info.grids, counts, strict=True):
            if first_row:
                draft.add_text([self.ids.vision_end, self.ids.vision_start])
            draft.add_rows(item, first_row, [pad] * count, self._axes(grid, seconds), count)
            first_row += count

    def _add_heard_video(self, draft: _Draft, item: int, info: MediaInfo) -> None:
        """A video with its sound: one more pair of marks, which shares its positions with the outer ones."""
        order = order_of(info, self.merge_size, self.clock)
        seconds = 1.0 if info.seconds_per_grid is None else info.seconds_per_grid
        seen = self._axes(only_grid(info), seconds)
        heard = np.broadcast_to(np.arange(info.sound_row_count), (AXES, info.sound_row_count))
        positions = np.empty((AXES, info.row_count), np.int64)
        positions[:, ~order.of_sound] = seen[:, order.places[~order.of_sound]]
        positions[:, order.of_sound] = heard[:, order.places[order.of_sound]]
        pads = np.where(order.of_sound, self.ids.audio, self.ids.video).tolist()
        draft.add_mark(self.ids.audio_start, back=1)
        draft.add_rows(item, 0, pads, positions, order.last_piece)
        draft.add_mark(self.ids.audio_end, back=0)

    def _axes(self, grid: Grid, seconds: float) -> Positions:
        """Time, height and width of every row, from 0."""
        shape = (grid.time, grid.height // self.merge_size, grid.width // self.merge_size)
        axes = np.indices(shape, dtype=np.int64).reshape(AXES, -1)
        axes[0] = self.clock.steps(grid.time, seconds)[axes[0]]
        return axes


class _Draft:
    """An expanded prompt in the making."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._spans: list[Span] = []
        self._pieces: list[Positions] = [np.zeros((AXES, 0), np.int64)]
        self._next = 0

    def add_text(self, token_ids: Sequence[int]) -> None:
        self._token_ids.extend(token_ids)
        self._append(np.arange(len(token_ids)) + self._next)
        self._next += len(token_ids)

    def add_mark(self, token_id: int, back: int) -> None:
        """A token that takes no position of its own: that of the one `back` before the next."""
        self._token_ids.append(token_id)
        self._append(np.array([self._next - back]))

    def add_rows(
        self, item: int, first_row: int, pads: Sequence[int], positions: Positions, last_piece: int
    ) -> None:
        """Rows of an item, whose positions count from the next one.

        Args:
            last_piece: rows at the end behind whose highest position the text goes on.
        """
        self._spans.append(Span(item, len(self._token_ids), len(pads), first_row=first_row))
        self._token_ids.extend(pads)
        self._pieces.append(positions + self._next)
        self._next += int(positions[:, -last_piece:].max()) + 1

    def finish(self) -> ExpandedPrompt:
        positions = np.concatenate(self._pieces, axis=1)
        next_position = int(positions.max(initial=-1)) + 1
        if next_position > MAX_POSITION:
            raise InvalidRequestError(
                f"a video's time leads to position {next_position}, beyond {MAX_POSITION}"
            )
        return ExpandedPrompt(self._token_ids, self._spans, positions, next_position)

    def _append(self, run: Positions) -> None:
        self._pieces.append(np.broadcast_to(run.astype(np.int64), (AXES, len(run))))
