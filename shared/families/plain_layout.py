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
    """For items of one modality.

    Attributes:
        token_id: of the placeholder.
        text: what stands for an item in plain text.
        modality: what items are.
    """

    token_id: int
    text: str
    modality: Modality = "image"

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {self.modality: self.token_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == self.modality, modality
        return self.text

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        check_placeholder_count(token_ids, self.token_id, len(media))
        runs = [(item, 0, info.row_count) for item, info in enumerate(media)]
        return grow_rows(token_ids, self.token_id, runs)
