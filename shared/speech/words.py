"""Words of an answer, of its tokens and of when these are heard. Pure: no I/O.

Words are made as transformers' Whisper tokenizer makes them. Knows bytes and characters; does not
know the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.families.languages import language_name
from shared.speech.transcript import Token

_WITHOUT_SPACES = frozenset({"chinese", "japanese", "thai", "lao", "myanmar", "cantonese"})
"""Languages whose words no space divides: each character is a word."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_OPENING = "\"'\u201c¡¿([{-"
_CLOSING = "\"'.\u3002,\uff0c!\uff01?\uff1f:\uff1a\u201d)]}\u3001"
"""Escaped are the quotation marks, and the signs of Chinese and Japanese that look like others."""
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times.

    Attributes:
        text: with a space in front where there was one.
        start_s, end_s: in seconds from the recording's beginning.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class _Run:
    """Text of consecutive tokens."""

    text: str
    tokens: list[Token]


def words_of(tokens: Sequence[Token], language: str, start_s: float, end_s: float) -> list[Word]:
    """The words of one piece's answer.

    Args:
        tokens: of its text, with their times; see `Token`.
        language: that is spoken, a code or an English name.
        start_s, end_s: where the piece is in the recording; no word leaves it.
    """
    characters = list(_whole_characters(tokens))
    apart = language_name(language) in _WITHOUT_SPACES
    runs = _closed_up(characters if apart else list(_by_spaces(characters)))
    words = []
    for run in runs:
        if not run.text.strip():
            continue
        first, last = (min(start_s + time, end_s) for time in (run.tokens[0].start_s, run.tokens[-1].end_s))
        words.append(Word(run.text, first, last))
    return words


def _whole_characters(tokens: Iterable[Token]) -> Iterator[_Run]:
    """Tokens joined until their bytes are whole characters, or can never be."""
    tokens = list(tokens)
    whole = b"".join(token.raw for token in tokens).decode("utf-8", "replace")
    offset, pending = 0, list[Token]()
    for token in tokens:
        pending.append(token)
        text = b"".join(one.raw for one in pending).decode("utf-8", "replace")
        place = offset + text.find(_BROKEN)
        if _BROKEN not in text or place >= len(whole) or whole[place] == _BROKEN:
            yield _Run(text, pending)
            offset, pending = offset + len(text), []


def _by_spaces(runs: Iterable[_Run]) -> Iterator[_Run]:
    """A word begins with a space, or is a sign of punctuation."""
    word: _Run | None = None
    for run in runs:
        if word is None or run.text.startswith(" ") or run.text.strip() in _PUNCTUATION:
            if word is not None:
                yield word
            word = _Run(run.text, list(run.tokens))
        else:
            word.text += run.text
            word.tokens += run.tokens
    if word is not None:
        yield word


def _closed_up(runs: list[_Run]) -> list[_Run]:
    """Opening signs join the word behind them, closing ones the word in front."""
    front: list[_Run] = []
    for run in reversed(runs):
        if front and run.text.startswith(" ") and run.text.strip() in _OPENING:
            front[-1] = _Run(run.text + front[-1].text, [*run.tokens, *front[-1].tokens])
        else:
            front.append(run)
    closed: list[_Run] = []
    for run in reversed(front):
        if closed and not closed[-1].text.endswith(" ") and run.text in _CLOSING:
            closed[-1] = _Run(closed[-1].text + run.text, [*closed[-1].tokens, *run.tokens])
        else:
            closed.append(run)
    return closed
