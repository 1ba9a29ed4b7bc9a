"""Tokens to text, a little at a time.

The pieces of text add up to exactly what the tokenizer makes of all tokens at
once (special tokens left out), and none ends within a character. Knows tokens
and text; does not know stop strings.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from llm_service.token_table import TokenTable

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Makes text of one sequence's tokens."""

    def add(self, token_id: int) -> str:
        """Takes the next token and returns the text that is certain now, maybe none."""
        ...

    def finish(self) -> str:
        """Returns the text that was held back: no token follows."""
        ...


def open_detokenizer(tokenizer: Tokenizer, table: TokenTable) -> Detokenizer:
    """Returns a fresh detokenizer of the kind that the vocabulary needs."""
    return ByteDetokenizer(table) if table.byte_level else WindowDetokenizer(tokenizer, table)


class ByteDetokenizer:
    """For byte-level BPE: the text is the tokens' bytes, one after the other, read as UTF-8."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """Takes the next token and returns the text that is certain now, maybe none."""
        if token_id in self._table.special_ids:
            return ""
        return self._decoder.decode(self._table.raw(token_id))

    def finish(self) -> str:
        """Returns the text that was held back: no token follows."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other vocabulary: lets the tokenizer decode a short window twice.

    New text is what the window's text gains by the new tokens. The window
    always begins with tokens that have a text, since many decoders treat the
    beginning in their own way (they strip a space), which then cancels out.
    """

    def __init__(self, tokenizer: Tokenizer, table: TokenTable) -> None:
        self._tokenizer = tokenizer
        self._byte_piece_ids = table.byte_piece_ids
        self._special_ids = table.special_ids
        self._window: list[int] = []
        self._shown_count = 0
        self._shown_text = ""

    def add(self, token_id: int) -> str:
        """Takes the next token and returns the text that is certain now, maybe none."""
        # Rows that pad a model's vocabulary have no token, and the tokenizer passes them over.
        if token_id in self._special_ids or self._tokenizer.id_to_token(token_id) is None:
            return ""
        self._window.append(token_id)
        if token_id in self._byte_piece_ids:
            # A run of byte pieces is read as a whole: one bad byte spoils all of it.
            return ""
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Returns the text that was held back: no token follows."""
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        """Moves the window on and returns the text that is new in it."""
        new = text[len(self._shown_text) :]
        recent = self._window[self._shown_count :]
        recent_text = self._decode(recent)
        if recent_text:
            self._window, self._shown_text = recent, recent_text
        else:
            self._shown_text = text
        self._shown_count = len(self._window)
        return new

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
