"""Prompt layout where a placeholder simply grows to its item's rows, on one rotary axis.

Knows placeholders and counts. Does not know how many rows a picture has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.families.base import ExpandedPrompt, MediaInfo, Modality
from shared.families.grown_rows import grow_rows
from shared.families.mrope import check_placeholder_count


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """For pictures alone.

    Attributes:
        image_id: token id of the placeholder.
        image_text: what stands for a picture in plain text.
    """

    image_id: int
    image_text: str

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return self.image_text

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        check_placeholder_count(token_ids, self.image_id, len(media))
        runs = [(item, 0, info.row_count) for item, info in enumerate(media)]
        return grow_rows(token_ids, self.image_id, runs)
