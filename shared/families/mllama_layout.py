"""Llama 3.2 Vision's prompts: all pictures' states in front, one token in the text for each picture.

In front, because every token looks at them: those in front of a prompt's first picture
token as well (see `seen_by`). So whatever a block of text holds follows from all of the
prompt's pictures, as its content hash says.

Knows tokens, places for tiles and who sees which. Does not know weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared.families.base import ExpandedPrompt, MediaInfo, Modality, Span
from shared.families.encoder_prompts import check_reads_no_text
from shared.families.mrope import check_placeholder_count

PLACEHOLDER = "<|image|>"

Range = tuple[int, int]
"""Rows from the first to before the second."""


@dataclass(frozen=True, slots=True)
class MllamaLayout:
    """See `PromptLayout`.

    Attributes:
        token_id: of a picture.
        tile_rows: states of one place for a tile.
    """

    token_id: int
    tile_rows: int

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.token_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return PLACEHOLDER

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens); text counts from 0, whatever is in front.

        A picture has a span of the places that hold tiles, and another of the rest.
        """
        check_placeholder_count(token_ids, self.token_id, len(media))
        spans: list[Span] = []
        ahead = 0
        for item, info in enumerate(media):
            (grid,) = info.grids
            shown = grid.height * grid.width * self.tile_rows
            spans.append(Span(item, ahead, shown))
            if shown < info.row_count:
                spans.append(Span(item, ahead + shown, info.row_count - shown, first_row=shown))
            ahead += info.row_count
        text = np.arange(len(token_ids), dtype=np.int64)
        positions = np.concatenate([np.zeros(ahead, np.int64), text])[np.newaxis]
        return ExpandedPrompt([self.token_id] * ahead + list(token_ids), spans, positions, len(token_ids))

    def joined(self, encoder_ids: Sequence[int], decoder_ids: Sequence[int]) -> list[int]:
        """See `TakesEncoderPrompt`."""
        check_reads_no_text(encoder_ids)
        return list(decoder_ids)


def pictures_seen(
    token_ids: Sequence[int], spans: Sequence[Span], picture_id: int, first: int, end: int
) -> list[tuple[int, list[Range]]]:
    """Which rows of pictures the tokens `first` to `end` (exclusive) of a sequence see.

    A token sees the picture whose token came last, and those whose tokens stand directly
    in front of that one; of each the places that hold tiles. Tokens in front of all
    pictures' see none.

    Args:
        token_ids: of the whole sequence, rows of pictures in front.
        spans: as `MllamaLayout.expand` makes them.

    Returns:
        Runs of tokens in order: where each begins, and what its tokens see.
    """
    shown = [(span.start, span.start + span.length) for span in spans if span.first_row == 0]
    ahead = spans[-1].start + spans[-1].length
    places: list[int] = []
    for _ in shown:
        places.append(token_ids.index(picture_id, places[-1] + 1 if places else ahead))
    runs: list[tuple[int, list[Range]]] = [(first, [])]
    for picture, place in enumerate(places):
        follows = picture > 0 and places[picture - 1] == place - 1
        seen = [*(runs[-1][1] if follows else []), shown[picture]]
        if place >= end:
            break
        if place <= first:
            runs = [(first, seen)]
        else:
            runs.append((place, seen))
    return runs
