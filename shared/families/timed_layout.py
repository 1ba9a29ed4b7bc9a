"""Prompts in which a video is a picture for each group of its frames, and the time of each in words.

As in Qwen3-VL and GLM-4V, with three rotary axes. Knows how such items are written
and where their positions lie; the words are a family's. Knows no weights and
imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, Grid, MediaInfo, Modality, Span
from shared.families.mrope import Draft


@dataclass(frozen=True, slots=True)
class ItemWords:
    """How a family writes items.

    Attributes:
        placeholders: of each modality, what one item is in a message.
        picture: one picture's token.
        between: of each modality, what stands between two files of one item.
        group: seconds -> a group of a video's frames, one token and its time.
    """

    placeholders: Mapping[Modality, str]
    picture: str
    between: Mapping[Modality, str]
    group: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class TimedLayout:
    """See `WritesItems`. A video is an item whose `MediaInfo` has timestamps.

    Attributes:
        image_id: token id of a picture's placeholder.
        video_id: token id of a video's placeholder.
        group_id: token id of the rows of a group of frames.
        merge_size: patches per row of embeddings, along one side.
    """

    image_id: int
    video_id: int
    group_id: int
    merge_size: int
    words: ItemWords

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id, "video": self.video_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return self.words.placeholders[modality]

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`."""
        if modality == "image":
            return self.words.between["image"].join([self.words.picture] * len(info.grids))
        times = iter(info.timestamps)
        return self.words.between["video"].join(
            "".join(self.words.group(next(times)) for _ in range(grid.time)) for grid in info.grids
        )

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (3, tokens)."""
        pads = (self.image_id, self.group_id)
        places = [place for place, token_id in enumerate(token_ids) if token_id in pads]
        runs = [run for item, info in enumerate(media) for run in self._runs(item, info)]
        if len(places) != len(runs):
            raise InvalidRequestError(
                f"the prompt has {len(places)} placeholders; its {len(media)} items need {len(runs)}"
            )
        draft = Draft(self.merge_size)
        start = 0
        for place, (grid, span) in zip(places, runs, strict=True):
            draft.add_text(token_ids[start:place])
            draft.add_rows(token_ids[place], replace(span, start=len(draft.token_ids)), grid, 1.0)
            start = place + 1
        draft.add_text(token_ids[start:])
        return draft.finish()

    def _runs(self, item: int, info: MediaInfo) -> list[tuple[Grid, Span]]:
        """The item's runs of rows: their grids, and spans that do not know yet where they start."""
        grids = info.grids
        if info.timestamps:
            grids = tuple(Grid(1, grid.height, grid.width) for grid in grids for _ in range(grid.time))
        counts = [grid.time * grid.height * grid.width // self.merge_size**2 for grid in grids]
        if sum(counts) != info.row_count or not counts:
            raise InvalidRequestError(
                f"item {item} has {info.row_count} rows; its grids imply {sum(counts)}",
                param=f"media[{item}]",
            )
        firsts = [sum(counts[:index]) for index in range(len(counts))]
        return [
            (grid, Span(item, start=0, length=count, first_row=first))
            for grid, count, first in zip(grids, counts, firsts, strict=True)
        ]
