"""What each token is by itself: its bytes, its text, whether it is special.

Knows the two ways in which vocabularies write bytes: the byte alphabet of
byte-level BPE, and pieces with "▁" and `<0xNN>` of the sentencepiece style.
Does not know how the texts of tokens join (see `detokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTable:
    """Bytes and texts of single tokens.

    Attributes:
        byte_level: True where a text is the concatenation of its tokens' bytes.
        special_ids: tokens that no text shows.
        special_tokens: how those are written.
        byte_piece_ids: tokens that stand for one byte, in the sentencepiece style.
    """

    def __init__(self, tokenizer: Tokenizer, shows: Callable[[str], bool] | None = None) -> None:
        """Args:
        shows: says of a token that the vocabulary calls special whether it is text all the same.
        """
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(json.loads(tokenizer.to_str()).get("decoder"))
        self.byte_level = kinds == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in kinds
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        special = {
            token_id: token.content
            for token_id, token in added.items()
            if token.special and not (shows is not None and shows(token.content))
        }
        self.special_ids = frozenset(special)
        self.special_tokens = frozenset(special.values())
        self.byte_piece_ids = self._find_byte_pieces()
        self._raw: dict[int, bytes] = {}

    def raw(self, token_id: int) -> bytes:
        """The token's bytes; b"" for an id that the tokenizer does not know."""
        found = self._raw.get(token_id)
        if found is None:
            found = self._raw[token_id] = self._spell(token_id)
        return found

    def text(self, token_id: int) -> str:
        """The token's text; U+FFFD stands for bytes that are no whole character."""
        return self.raw(token_id).decode("utf-8", "replace")

    def _spell(self, token_id: int) -> bytes:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self.byte_level:
            return _byte_level_bytes(piece)
        if token_id in self._added:
            return self._added[token_id].encode()
        match = _BYTE_PIECE.fullmatch(piece) if self._byte_fallback else None
        if match is not None:
            return bytes([int(match.group(1), 16)])
        return piece.replace("▁", " ").encode()

    def _find_byte_pieces(self) -> frozenset[int]:
        if not self._byte_fallback:
            return frozenset()
        ids = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token_id for token_id in ids if token_id is not None)


def _decoder_kinds(decoder: dict[str, Any] | None) -> list[str]:
    """Types of the steps of a tokenizer's decoder, in order."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [kind for step in decoder["decoders"] for kind in _decoder_kinds(step)]
    return [decoder["type"]]


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes.

    Printable Latin-1 stands for itself; each other byte has a character from
    U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()

BYTE_CHARACTERS = {byte: character for character, byte in _ALPHABET.items()}
"""The other way round: the character of each byte."""


def _byte_level_bytes(piece: str) -> bytes:
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return piece.encode()
