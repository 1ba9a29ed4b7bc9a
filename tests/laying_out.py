"""A prompt's text with its items' layouts to tokens and spans, as the LLM service does it.

Knows the kinds of layouts. Does not know any family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_service.item_writer import ItemWriter, placeholder_ids
from llm_service.text_tokenizer import TextTokenizer
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import ExpandedPrompt, MediaInfo, WritesItems
from shared.families.takes_tasks import TakesTasks


class Layouter:
    """The front's half of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        family = load_family(read_checkpoint(folder))
        self.layout = family.prompt_layout()
        shows = self.layout.shows if isinstance(self.layout, TakesTasks) else None
        self.tokenizer = TextTokenizer.load(folder, family.config(), shows)
        self.tokenizer.know(self.layout.added_tokens if isinstance(self.layout, TakesTasks) else ())
        self._placeholders = placeholder_ids(self.tokenizer, self.layout, family.modalities)

    def token_ids(self, text: str, infos: Sequence[MediaInfo]) -> list[int]:
        """Tokens of a text with one placeholder for each item, as `PromptLayout.expand` takes them."""
        if isinstance(self.layout, TakesTasks):
            return self.tokenizer.encode(self.layout.written(text))
        token_ids = self.tokenizer.encode(text)
        if isinstance(self.layout, WritesItems) and infos:
            return ItemWriter(self.tokenizer, self.layout, self._placeholders).written(
                token_ids, [text], infos
            )
        return token_ids

    def lay_out(self, text: str, infos: Sequence[MediaInfo]) -> ExpandedPrompt:
        """The expanded prompt."""
        return self.layout.expand(self.token_ids(text, infos), infos)
