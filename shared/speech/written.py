"""What was written of a whole recording: its text, segments and words. Pure: no I/O.

Knows the answers of all pieces. Does not know who asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shared.speech.question import SpeechQuestion
from shared.speech.transcribing import PieceAnswer
from shared.speech.transcript import Segment, segments_of
from shared.speech.words import Word, words_of


def joined_text(texts: Sequence[str], question: SpeechQuestion) -> str:
    """One text of all pieces. Models of Whisper's kind write the spaces between words themselves."""
    if question.marked:
        return "".join(texts).strip()
    return " ".join(filter(None, (text.strip() for text in texts)))


def whole_text(answers: Sequence[PieceAnswer], question: SpeechQuestion) -> str:
    """The text of all pieces, without times."""
    if question.times:
        return joined_text([segment.text for segment in segments(answers, question)], question)
    return joined_text([answer.text for answer in answers], question)


def segments(answers: Sequence[PieceAnswer], question: SpeechQuestion) -> list[Segment]:
    """The segments of all pieces; one for each piece where the model writes no times."""
    found: list[Segment] = []
    for answer in answers:
        if question.times:
            of_piece = segments_of(answer.tokens, answer.start_s, answer.end_s)
        elif answer.text.strip():
            tokens = tuple(answer.tokens)
            of_piece = [Segment(answer.start_s, answer.end_s, answer.text, tokens, answer.start_s)]
        else:
            continue
        silence = answer.measures.no_speech_probability if answer.measures is not None else 0.0
        found += [
            replace(segment, temperature=answer.temperature, no_speech_probability=silence)
            for segment in of_piece
        ]
    return found


def words(answers: Sequence[PieceAnswer], found: Sequence[Segment], language: str) -> Iterator[Word]:
    """The words of all segments.

    Args:
        found: `segments` of the same answers.
        language: that is written, a code or an English name.
    """
    ends = {answer.start_s: answer.end_s for answer in answers}
    for segment in found:
        tokens = [token for token in segment.tokens if token.is_text]
        yield from words_of(tokens, language, segment.seek_s, ends[segment.seek_s])
