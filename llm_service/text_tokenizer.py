"""The checkpoint's tokenizer, as far as the service needs it.

Knows how a checkpoint's text becomes tokens: the same ids as its Hugging Face
processor gives. Does not know chat templates or media.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_service.tekken import FILE_NAME as TEKKEN
from llm_service.tekken import load_tekken
from llm_service.token_table import TokenTable
from shared.errors import InvalidRequestError


class TextTokenizer:
    """Text to tokens and back. Safe to use from several threads.

    Attributes:
        hf: the Hugging Face tokenizer, for its chat template machinery.
        backend: the `tokenizers.Tokenizer` that does the work.
        table: bytes and texts of single tokens.
    """

    def __init__(self, hf: Any, shows: Callable[[str], bool] | None = None) -> None:
        """Args:
        hf: as transformers loads it.
        shows: see `TokenTable`.
        """
        backend = getattr(hf, "backend_tokenizer", None)
        if backend is None:
            raise InvalidRequestError("the checkpoint needs a fast tokenizer (tokenizer.json)")
        self.hf = hf
        self.backend = backend
        self._shows = shows
        self.table = TokenTable(backend, shows)
        self._special_tokens = sorted(self.table.special_tokens)
        self._adds_special_tokens = not self._ends_texts()

    @classmethod
    def load(
        cls, folder: Path, config: Any = None, shows: Callable[[str], bool] | None = None
    ) -> TextTokenizer:
        """Reads a checkpoint's tokenizer. Slow: it imports transformers.

        Args:
            config: the model's configuration in transformers' words; None: the folder's own.
            shows: see `TokenTable`.
        """
        from transformers import AutoTokenizer

        if (folder / TEKKEN).is_file() and not (folder / "tokenizer.json").is_file():
            return cls(load_tekken(folder / TEKKEN))
        # Without the last argument transformers asks on the console whether to run a checkpoint's code.
        return cls(AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False), shows)

    @property
    def end_token_id(self) -> int | None:
        """The tokenizer's own end-of-sequence token."""
        found: int | None = self.hf.eos_token_id
        return found

    def special_id(self, text: str) -> int:
        """The id of a special token, which is put behind the vocabulary if there is none yet."""
        self.know([text])
        return int(self.backend.token_to_id(text))

    def know(self, special_tokens: Sequence[str]) -> None:
        """Puts special tokens behind the vocabulary, in order, those that it lacks."""
        new = [text for text in special_tokens if self.backend.token_to_id(text) is None]
        if new:
            self.backend.add_special_tokens(new)
            self.table = TokenTable(self.backend, self._shows)
            self._special_tokens = sorted(self.table.special_tokens)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Tokens of a whole prompt; special tokens in it are special.

        A begin token goes in front where the tokenizer has that habit and the
        text does not begin with it, as in Hugging Face processors. Nothing is put
        around a prompt by a tokenizer that ends every text.
        """
        adds_begin = self._adds_special_tokens and not self._has_begin(text)
        return self._encode_batch([text], adds_begin)[0]

    def encode_pieces(self, pieces: Sequence[str], *, begins_prompt: bool = True) -> list[int]:
        """Tokens of a prompt that was cut so that no special token spans two pieces.

        Args:
            begins_prompt: the first piece is the prompt's beginning.
        """
        ids = self.encode(pieces[0]) if begins_prompt else []
        # Text that does not begin the prompt goes behind a special token, which is dropped
        # again: tokenizers treat the beginning of a text in their own way (a space before it).
        anchor = self._special_tokens[0] if self._special_tokens else ""
        rest = [anchor + piece for piece in pieces[1 if begins_prompt else 0 :]]
        for piece_ids in self._encode_batch(rest, False):
            ids += piece_ids[1:] if anchor else piece_ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        if self._shows is not None:
            kept = [token_id for token_id in token_ids if token_id not in self.table.special_ids]
            return str(self.backend.decode(kept, skip_special_tokens=False))
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def _has_begin(self, text: str) -> bool:
        """Whether the begin token comes first, other special tokens aside: pictures may stand first."""
        begin = self.hf.bos_token
        place = text.find(begin) if begin else -1
        if place <= 0:
            return place == 0
        special = "|".join(map(re.escape, self._special_tokens))
        return re.fullmatch(f"(?:{special})+", text[:place]) is not None

    def _ends_texts(self) -> bool:
        """Whether it is made for whole answers: it puts an end token behind every text.

        A prompt then gets nothing around it: it is to be continued.
        """
        ids = self.backend.encode("", add_special_tokens=True).ids
        return len(ids) > 1 and ids[-1] == self.end_token_id

    def _encode_batch(self, texts: list[str], adds_special_tokens: bool) -> list[list[int]]:
        """Tokens of each text. The batch call lets other threads run meanwhile; the single one does not."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=adds_special_tokens)
        return [encoding.ids for encoding in encodings]
