"""Keeps special tokens that a user typed from being special.

A mark is put inside each special token that occurs in a message's text, before
the chat template runs; the rendered text is then cut at the marks, and the
tokenizer never sees the special token whole. Knows texts; knows neither
templates nor vocabularies.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate


class SpecialTokenGuard:
    """Marks special tokens in texts, for one prompt.

    The mark is random, so that nobody can type it, and made of a noncharacter
    of Unicode, so that no template trims it.
    """

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._mark = f"\ufdd0{secrets.token_hex(8)}\ufdd0"

    def protect(self, text: str) -> str:
        """Returns the text with a mark behind the first character of each special token."""
        if self._pattern is None:
            return text
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
        if not cuts:
            return text
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return self._mark.join(pieces)

    def protect_all(self, texts: Sequence[str]) -> list[str]:
        """Protects texts that a template may write side by side, with or without the space around them.

        A token may then lie in several of them: a mark goes between those, too.
        """
        torn = {number for form in (str, str.strip) for number in self._torn([form(text) for text in texts])}
        return [
            (self._mark if number in torn else "") + self.protect(text) for number, text in enumerate(texts)
        ]

    def _torn(self, texts: Sequence[str]) -> set[int]:
        """The texts in front of which the inside of a token ends a text before."""
        if self._pattern is None or len(texts) < 2:
            return set()
        borders = list(accumulate(map(len, texts), initial=0))
        tokens = [match.span(1) for match in self._pattern.finditer("".join(texts))]
        return {
            number
            for start, end in tokens
            for number in range(bisect_right(borders, start), bisect_left(borders, end))
            if texts[number]
        }

    def split(self, rendered: str) -> list[str]:
        """Cuts a rendered prompt at the marks: one piece where there is none."""
        return rendered.split(self._mark)


def special_token_pattern(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches, with no width, wherever one of the tokens begins; its group is the longest.

    Tokens may overlap in a text, hence no width. A token of one character
    cannot be cut and is left alone.
    """
    tokens = {token for token in special_tokens if len(token) > 1}
    return re.compile(f"(?=({_any_of(tokens)}))") if tokens else None


def _any_of(tokens: Iterable[str]) -> str:
    """A pattern of any of the tokens, the longest that fits.

    By shared beginnings: vocabularies have thousands of special tokens, and one after the other
    they would be tried at every character of a text.
    """
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[:1], []).append(token[1:])
    may_end = rests.pop("", None) is not None
    branches = [re.escape(first) + _any_of(rest) for first, rest in sorted(rests.items())]
    if not branches:
        return ""
    whole = len(branches) == 1 and not may_end
    return branches[0] if whole else f"(?:{'|'.join(branches)}){'?' if may_end else ''}"
