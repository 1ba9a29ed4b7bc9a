"""What was written of a recording in OpenAI's forms. Pure: no I/O.

Knows OpenAI's response objects. Does not know how they travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.transcribing import Part, PieceAnswer, tokens_of
from gateway.transcription_request import SpeechRequest
from shared.families.languages import language_name
from shared.transcript import Segment, Token, segments_of
from shared.words import Word, words_of

Json = dict[str, Any]

_LEAST_LOGPROB = -9999.0
_FRAMES_PER_SECOND = 100
"""OpenAI counts `seek` in frames of a spectrogram."""


def joined_text(texts: Sequence[str], asked: SpeechRequest) -> str:
    """One text of all pieces. Models of Whisper's kind write the spaces between words themselves."""
    if asked.facts.instructions is None:
        return "".join(texts).strip()
    return " ".join(filter(None, (text.strip() for text in texts)))


def segments(answers: Sequence[PieceAnswer], asked: SpeechRequest) -> list[Segment]:
    """The segments of all pieces; one for each piece where the model writes no times."""
    found = []
    for answer in answers:
        piece = answer.piece
        if asked.times:
            found += segments_of(answer.tokens, piece.start_s, piece.end_s)
        elif answer.text.strip():
            tokens = tuple(answer.tokens)
            found.append(Segment(piece.start_s, piece.end_s, answer.text, tokens, piece.start_s))
    return found


class TextStream:
    """Turns what comes into events whose texts add up to the whole text."""

    def __init__(self, asked: SpeechRequest) -> None:
        self._asked = asked
        self._index = 0
        self._held = ""
        self._begun = False
        self._strips = True

    def events(self, part: Part) -> list[Json]:
        """The event of new text; none where there is nothing to say yet."""
        if part.index != self._index:
            self._next_piece(part.index)
        text = self._held + (part.text.lstrip() if self._strips else part.text)
        # Space at the end may be the end of all.
        said = text.rstrip()
        self._held = text[len(said) :]
        if not said:
            return []
        self._begun, self._strips = True, False
        event: Json = {"type": "transcript.text.delta", "delta": said}
        if self._asked.form.include:
            event["logprobs"] = [
                _logprob(token) for frame in part.frames for token in tokens_of(frame) if token.is_text
            ]
        return [event]

    def _next_piece(self, index: int) -> None:
        self._index = index
        if self._asked.facts.instructions is not None:
            self._strips = True
            self._held = " " if self._begun else ""


def usage_object(seconds: float) -> Json:
    """What was heard, in whole seconds as OpenAI counts them."""
    return {"type": "duration", "seconds": math.ceil(seconds)}


def json_object(answers: Sequence[PieceAnswer], asked: SpeechRequest, seconds: float) -> Json:
    """The answer of `response_format` json."""
    answer: Json = {"text": whole_text(answers, asked)}
    if asked.form.include:
        tokens = [token for piece in answers for token in piece.tokens if token.is_text]
        answer["logprobs"] = [_logprob(token) for token in tokens]
    return answer | {"usage": usage_object(seconds)}


def verbose_object(
    answers: Sequence[PieceAnswer], asked: SpeechRequest, seconds: float, language: str
) -> Json:
    """The answer of `response_format` verbose_json."""
    found = segments(answers, asked)
    answer: Json = {
        "task": "translate" if asked.translates else "transcribe",
        "language": "english" if asked.translates else language_name(language),
        "duration": seconds,
        "text": joined_text([segment.text for segment in found], asked),
    }
    granularities = asked.form.timestamp_granularities or ["segment"]
    if "segment" in granularities:
        answer["segments"] = [
            _segment_object(number, segment, asked.form.temperature) for number, segment in enumerate(found)
        ]
    if asked.form.wants_words:
        answer["words"] = [
            {"word": word.text.strip(), "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for word in _words(answers, found, "english" if asked.translates else language)
        ]
    return answer | {"usage": usage_object(seconds)}


def _words(answers: Sequence[PieceAnswer], found: Sequence[Segment], language: str) -> Iterator[Word]:
    """The words of all segments."""
    ends = {answer.piece.start_s: answer.piece.end_s for answer in answers}
    for segment in found:
        tokens = [token for token in segment.tokens if token.is_text]
        yield from words_of(tokens, language, segment.seek_s, ends[segment.seek_s])


def whole_text(answers: Sequence[PieceAnswer], asked: SpeechRequest) -> str:
    """The text of all pieces, without times."""
    if asked.times:
        return joined_text([segment.text for segment in segments(answers, asked)], asked)
    return joined_text([answer.text for answer in answers], asked)


def _segment_object(number: int, segment: Segment, temperature: float) -> Json:
    return {
        "id": number,
        "seek": round(segment.seek_s * _FRAMES_PER_SECOND),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [token.token_id for token in segment.tokens],
        "temperature": temperature,
        "avg_logprob": max(segment.mean_logprob, _LEAST_LOGPROB),
        "compression_ratio": segment.compression_ratio,
        # Not measured.
        "no_speech_prob": 0.0,
    }


def _logprob(token: Token) -> Json:
    return {
        "token": token.raw.decode("utf-8", "replace"),
        "logprob": max(token.logprob, _LEAST_LOGPROB),
        "bytes": list(token.raw),
    }
