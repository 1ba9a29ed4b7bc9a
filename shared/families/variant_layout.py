"""Prompt layout of models with an adapter for prompts that hold items.

Knows which variant a prompt takes. Does not know how placeholders grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shared.families.base import ExpandedPrompt, MediaInfo, Modality
from shared.families.plain_layout import PlainLayout


@dataclass(frozen=True, slots=True)
class VariantLayout:
    """Placeholders grow to rows; prompts with items are computed with the adapter for them.

    Attributes:
        plain: what grows placeholders.
        variant: of prompts with items; "" where the checkpoint has no adapter.
    """

    plain: PlainLayout
    variant: str

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return self.plain.placeholder_ids()

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        return self.plain.placeholder_text(modality)

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        expanded = self.plain.expand(token_ids, media)
        return replace(expanded, variant=self.variant) if media else expanded
