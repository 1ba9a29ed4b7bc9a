"""Writes items out in a prompt's text, for families whose layout wants that.

Knows placeholders in texts and in tokens. Does not know what is written: the
family's layout does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llm_service.text_tokenizer import TextTokenizer
from shared.families.base import MediaInfo, Modality, PromptLayout, WritesItems


def placeholder_ids(
    tokenizer: TextTokenizer, layout: PromptLayout, modalities: Iterable[Modality]
) -> dict[Modality, int]:
    """The token of each modality's placeholder.

    What has none in the vocabulary gets one behind it. No model ever sees that one:
    the layout writes the item out in its place.
    """
    known = dict(layout.placeholder_ids())
    for modality in modalities:
        if modality not in known and isinstance(layout, WritesItems):
            known[modality] = tokenizer.special_id(layout.placeholder_text(modality))
    return known


class ItemWriter:
    """Puts `item_text` in the place of placeholders.

    Args:
        placeholders: the token of each modality; see `placeholder_ids`.
    """

    def __init__(
        self, tokenizer: TextTokenizer, layout: WritesItems, placeholders: Mapping[Modality, int]
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._by_id = {token_id: modality for modality, token_id in placeholders.items()}
        self._by_text = {
            str(tokenizer.backend.id_to_token(token_id)): modality
            for token_id, modality in self._by_id.items()
        }
        self._pattern = re.compile("|".join(map(re.escape, self._by_text)))

    def written(
        self, token_ids: Sequence[int], pieces: Sequence[str] | None, media: Sequence[MediaInfo]
    ) -> list[int]:
        """Tokens of the prompt with its items written out.

        Args:
            token_ids: with one placeholder for each item.
            pieces: the text that they are of, cut as `RenderedText` says; None where
                there is none, and what is written is then tokenised by itself.
            media: layouts of the items, in order.
        """
        infos = iter(media)
        if pieces is None:
            return [token for token_id in token_ids for token in self._spliced(token_id, infos)]
        return self._tokenizer.encode_pieces([self._replaced(piece, infos) for piece in pieces])

    def _replaced(self, piece: str, infos: Iterator[MediaInfo]) -> str:
        return self._pattern.sub(
            lambda match: self._layout.item_text(self._by_text[match[0]], next(infos)), piece
        )

    def _spliced(self, token_id: int, infos: Iterator[MediaInfo]) -> list[int]:
        modality = self._by_id.get(token_id)
        if modality is None:
            return [token_id]
        text = self._layout.item_text(modality, next(infos))
        return self._tokenizer.encode_pieces([text], begins_prompt=False)
