"""Phi-4-multimodal's prompts: pictures and recordings grow to rows, and what there is chooses the adapter.

Knows placeholders and adapters' names. Does not know weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shared.families.base import ExpandedPrompt, MediaInfo, Modality
from shared.families.grown_rows import grow_rows
from shared.families.phi4_speech import SPEECH, VISION

_MODALITIES: tuple[Modality, Modality] = ("image", "audio")


@dataclass(frozen=True, slots=True)
class Phi4Layout:
    """See `PromptLayout`.

    Attributes:
        ids: the token of each modality's placeholder.
        texts: their texts.
        adapters: variants that the checkpoint has adapters for.
    """

    ids: Mapping[Modality, int]
    texts: Mapping[Modality, str]
    adapters: frozenset[str]

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return self.ids

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return self.texts[modality]

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        runs = [(item, 0, info.row_count) for item, info in enumerate(media)]
        expanded = grow_rows(token_ids, frozenset(self.ids.values()), runs)
        return replace(expanded, variant=self._variant(token_ids))

    def _variant(self, token_ids: Sequence[int]) -> str:
        """With a picture the adapter for pictures, whatever is heard; else the one for speech."""
        seen, heard = (self.ids[modality] in token_ids for modality in _MODALITIES)
        wanted = VISION if seen else SPEECH if heard else ""
        return wanted if wanted in self.adapters else ""
