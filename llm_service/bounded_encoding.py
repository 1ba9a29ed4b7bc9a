"""Tokenises a text of any length without ever doing much more than its limit is worth.

Knows that a text far beyond a number of tokens need not be read to its end. Does
not know what the limit stands for: the caller's `check` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llm_service.text_tokenizer import TextTokenizer

CHARACTERS_PER_TOKEN = 8
"""More than ordinary texts have: a longer text is read in several goes."""

_CUT_TOKENS = 16
"""By how much a cut in the middle of a text may raise the number of its tokens, amply."""


def encode_bounded(
    tokenizer: TextTokenizer, pieces: Sequence[str], token_limit: int, check: Callable[[int], None]
) -> list[int]:
    """Tokens of a prompt that was cut so that no special token spans two pieces.

    Args:
        token_limit: how many tokens may come of it, about.
        check: is told between two goes how many tokens there are at least; it
            raises where that is too many, and nothing more is read.
    """
    # Only the first piece can be empty, so each further one has a token or more.
    check(len(pieces) - 1)
    length = token_limit * CHARACTERS_PER_TOKEN
    token_ids: list[int] = []
    for start, end in _groups(pieces, length):
        check(len(token_ids))
        if end - start == 1 and len(pieces[start]) > length:
            _check_long_piece(tokenizer, pieces[start], length, len(token_ids), check)
        token_ids += tokenizer.encode_pieces(pieces[start:end], begins_prompt=start == 0)
    return token_ids


def _groups(pieces: Sequence[str], length: int) -> Iterator[tuple[int, int]]:
    """Ranges of pieces of at most `length` characters together; a longer piece is alone."""
    start = total = 0
    for index, piece in enumerate(pieces):
        if index > start and total + len(piece) > length:
            yield start, index
            start, total = index, 0
        total += len(piece)
    yield start, len(pieces)


def _check_long_piece(
    tokenizer: TextTokenizer, piece: str, length: int, count: int, check: Callable[[int], None]
) -> None:
    """Counts a long piece in slices, and so twice if it passes: few texts are long and have few tokens."""
    for start in range(0, len(piece) - length, length):
        count += max(0, len(tokenizer.encode(piece[start : start + length])) - _CUT_TOKENS)
        check(count)
