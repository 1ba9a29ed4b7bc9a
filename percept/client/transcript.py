"""What is said in a recording, as callers get it.

Knows the answers of all pieces. Does not know who wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.families.languages import language_name
from shared.speech.question import SpeechQuestion
from shared.speech.transcribing import Transcribing
from shared.speech.transcript import Segment
from shared.speech.words import Word
from shared.speech.written import segments, whole_text, words


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a recording.

    Attributes:
        language: that is spoken, its English name; "" where the model does not tell.
        duration_s: the recording's length, in seconds.
        segments: runs of text with their times; one for each piece where the model writes no times.
        words: with their times, where they were asked for.
    """

    text: str
    language: str
    duration_s: float
    segments: tuple[Segment, ...]
    words: tuple[Word, ...] = ()


def transcript_of(
    transcribing: Transcribing, question: SpeechQuestion, text: str | None = None
) -> Transcript:
    """The transcript of a recording that is written down.

    Args:
        text: as it was said already; None where nothing was.
    """
    answers = transcribing.answers
    found = segments(answers, question)
    spoken = language_name(transcribing.language) if transcribing.language else ""
    written = "english" if question.translates else spoken
    return Transcript(
        text=whole_text(answers, question) if text is None else text,
        language=spoken,
        duration_s=answers[-1].end_s,
        segments=tuple(found),
        words=tuple(words(answers, found, written)) if question.wants_words else (),
    )
