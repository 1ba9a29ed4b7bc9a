"""Keeps special tokens that a user typed from being special.

A mark is put inside each special token that occurs in a message's text, before
the chat template runs; the rendered text is then cut at the marks, and the
tokenizer never sees the special token whole. Knows texts; knows neither
templates nor vocabularies.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable


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

    def split(self, rendered: str) -> list[str]:
        """Cuts a rendered prompt at the marks: one piece where there is none."""
        return rendered.split(self._mark)


def special_token_pattern(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches, with no width, wherever one of the tokens begins.

    Tokens may overlap in a text, hence no width. A token of one character
    cannot be cut and is left alone.
    """
    tokens = sorted({token for token in special_tokens if len(token) > 1}, key=len, reverse=True)
    if not tokens:
        return None
    return re.compile(f"(?={'|'.join(re.escape(token) for token in tokens)})")
