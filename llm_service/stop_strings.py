"""Stop strings in a stream of text.

Knows text alone: which of it may be shown already, and where a stop string
ends it. Does not know tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Text to show, and the stop string that ended it, or None."""

    text: str
    stop_string: str | None


class StopStringFilter:
    """Holds back text that may become a stop string, and cuts where one is whole."""

    def __init__(self, stop_strings: Sequence[str], *, include_stop_string: bool) -> None:
        self._stop_strings = tuple(stop_strings)
        self._include = include_stop_string
        self._held = ""

    def add(self, text: str, *, may_match: bool = True) -> StopMatch:
        """Takes new text and returns what can be shown of it.

        Args:
            text: continues all that came before.
            may_match: False lets stop strings that are whole by now pass.
        """
        if not self._stop_strings:
            return StopMatch(text, None)
        self._held += text
        match = self._first_match() if may_match else None
        if match is not None:
            end, stop_string = match
            shown = self._held[: end if self._include else end - len(stop_string)]
            self._held = ""
            return StopMatch(shown, stop_string)
        keep = self._open_length()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return StopMatch(shown, None)

    def flush(self) -> str:
        """Returns what was held back: the text has ended."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        """The match that is whole first, the longest of those that end together."""
        found = [
            (start + len(text), start, text)
            for text in self._stop_strings
            if (start := self._held.find(text)) >= 0
        ]
        if not found:
            return None
        end, _, text = min(found)
        return end, text

    def _open_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(text) for text in self._stop_strings) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(len(text) > length and text.startswith(tail) for text in self._stop_strings):
                return length
        return 0
