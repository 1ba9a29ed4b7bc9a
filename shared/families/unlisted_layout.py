"""Prompt layout of models whose placeholder need not be a token of the vocabulary.

Their processors cut a prompt's text at the placeholder, and put some ordinary token
there once for each row. Knows the tokenizer's file and placeholders. Does not know any family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidRequestError
from shared.families.base import ExpandedPrompt, MediaInfo, Modality
from shared.families.grown_rows import grow_rows
from shared.families.mrope import check_placeholder_count


@dataclass(frozen=True, slots=True)
class UnlistedLayout:
    """For items of one modality; see `WritesItems`.

    Attributes:
        text: the placeholder.
        text_id: its token, behind the vocabulary where it is not in it.
        row_id: the token that stands in the prompt for each row.
        modality: what items are.
    """

    text: str
    text_id: int
    row_id: int
    modality: Modality

    @classmethod
    def of(cls, folder: Path, text: str, modality: Modality) -> UnlistedLayout:
        """Reads a checkpoint's tokenizer; its end token stands for rows.

        Raises:
            InvalidRequestError: it has none of these.
        """
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InvalidRequestError(f"{folder} needs a fast tokenizer (tokenizer.json)")
        tokenizer = Tokenizer.from_file(str(file))
        row_id = tokenizer.token_to_id(_end_token(folder))
        if row_id is None:
            raise InvalidRequestError(f"{folder}: the tokenizer has no end token (eos_token)")
        # As the service does; so both find the same id.
        tokenizer.add_special_tokens([text])
        text_id = tokenizer.token_to_id(text)
        assert text_id is not None, "it was just added"
        return cls(text, text_id, row_id, modality)

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `WritesItems`. None: the placeholder's token is told by its text."""
        return {}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == self.modality, modality
        return self.text

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """See `WritesItems`. Nothing is written beside the rows."""
        return self.text

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens)."""
        check_placeholder_count(token_ids, self.text_id, len(media))
        runs = [(item, 0, info.row_count) for item, info in enumerate(media)]
        expanded = grow_rows(token_ids, self.text_id, runs)
        expanded.token_ids = [self.row_id if token == self.text_id else token for token in expanded.token_ids]
        return expanded


def _end_token(folder: Path) -> str:
    """The end token that tokenizer_config.json names, or ""."""
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return ""
    if isinstance(named, dict):
        named = named.get("content")
    return named if isinstance(named, str) else ""
