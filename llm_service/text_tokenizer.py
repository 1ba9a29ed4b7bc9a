"""The checkpoint's tokenizer, as far as the service needs it.

Knows how a checkpoint's text becomes tokens: the same ids as its Hugging Face
processor gives. Does not know chat templates or media.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_service.special_tokens import special_token_pattern
from llm_service.token_table import TokenTable
from shared.errors import InvalidRequestError


class TextTokenizer:
    """Text to tokens and back. Safe to use from several threads.

    Attributes:
        hf: the Hugging Face tokenizer, for its chat template machinery.
        backend: the `tokenizers.Tokenizer` that does the work.
        table: bytes and texts of single tokens.
        special_pattern: matches where a special token begins in a text.
    """

    def __init__(self, hf: Any) -> None:
        backend = getattr(hf, "backend_tokenizer", None)
        if backend is None:
            raise InvalidRequestError("the checkpoint needs a fast tokenizer (tokenizer.json)")
        self.hf = hf
        self.backend = backend
        self.table = TokenTable(backend)
        self._special_tokens = sorted(self.table.special_tokens)
        self.special_pattern = special_token_pattern(self._special_tokens)

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Reads a checkpoint's tokenizer. Slow: it imports transformers."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder))

    @property
    def end_token_id(self) -> int | None:
        """The tokenizer's own end-of-sequence token."""
        found: int | None = self.hf.eos_token_id
        return found

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Tokens of a whole prompt; special tokens in it are special.

        A begin token goes in front where the tokenizer has that habit and the
        text does not begin with it, as in Hugging Face processors.
        """
        begin = self.hf.bos_token
        adds_begin = not (begin and text.startswith(begin))
        ids: list[int] = self.backend.encode(text, add_special_tokens=adds_begin).ids
        return ids

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Tokens of a prompt that was cut so that no special token spans two pieces."""
        ids = self.encode(pieces[0])
        for piece in pieces[1:]:
            ids += self._encode_inside(piece)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def _encode_inside(self, piece: str) -> list[int]:
        """Tokens of a text that does not begin the prompt: no space is put before it.

        A special token goes ahead of it and is dropped again, as tokenizers
        treat the beginning of a text in their own way.
        """
        if not self._special_tokens:
            ids: list[int] = self.backend.encode(piece, add_special_tokens=False).ids
            return ids
        anchored: list[int] = self.backend.encode(
            self._special_tokens[0] + piece, add_special_tokens=False
        ).ids
        return anchored[1:]
