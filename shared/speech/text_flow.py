"""The text of a recording as it comes: pieces of text that add up to the whole. Pure: no I/O.

Knows what spaces stand between pieces. Does not know who reads.
"""

from __future__ import annotations

from shared.speech.question import SpeechQuestion
from shared.speech.transcribing import Part


class TextFlow:
    """Turns what comes of the pieces, in their order, into text without space at its ends."""

    def __init__(self, question: SpeechQuestion) -> None:
        self._marked = question.marked
        self._index = 0
        self._held = ""
        self._begun = False
        self._strips = True

    def said(self, part: Part) -> str:
        """The text that can be said by now behind what was said before; "" where there is none."""
        if part.index != self._index:
            self._next_piece(part.index)
        text = self._held + (part.text.lstrip() if self._strips else part.text)
        # Space at the end may be the end of all.
        said = text.rstrip()
        self._held = text[len(said) :]
        if said:
            self._begun, self._strips = True, False
        return said

    def _next_piece(self, index: int) -> None:
        """Models of Whisper's kind write the spaces between pieces themselves."""
        self._index = index
        if not self._marked:
            self._strips = True
            self._held = " " if self._begun else ""
