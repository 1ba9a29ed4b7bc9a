"""What was written of a recording in OpenAI's forms. Pure: no I/O.

Knows OpenAI's response objects. Does not know how they travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gateway.transcription_request import SpeechRequest
from shared.families.languages import language_name
from shared.speech.text_flow import TextFlow
from shared.speech.transcribing import Part, PieceAnswer, tokens_of
from shared.speech.transcript import Segment, Token
from shared.speech.written import joined_text, segments, whole_text, words

Json = dict[str, Any]

_LEAST_LOGPROB = -9999.0
_FRAMES_PER_SECOND = 100
"""OpenAI counts `seek` in frames of a spectrogram."""


class TextStream:
    """Turns what comes into events whose texts add up to the whole text."""

    def __init__(self, asked: SpeechRequest) -> None:
        self._asked = asked
        self._flow = TextFlow(asked.question)
        self._logprobs: list[Json] = []

    def events(self, part: Part) -> list[Json]:
        """The event of new text; none where there is nothing to say yet."""
        said = self._flow.said(part)
        if self._asked.form.include:
            self._logprobs += [
                _logprob(token) for frame in part.frames for token in tokens_of(frame) if token.is_text
            ]
        if not said:
            return []
        event: Json = {"type": "transcript.text.delta", "delta": said}
        if self._asked.form.include:
            # Those of tokens that said nothing yet too.
            event["logprobs"], self._logprobs = self._logprobs, []
        return [event]


def usage_object(seconds: float) -> Json:
    """What was heard, in whole seconds as OpenAI counts them."""
    return {"type": "duration", "seconds": math.ceil(seconds)}


def json_object(answers: Sequence[PieceAnswer], asked: SpeechRequest, seconds: float) -> Json:
    """The answer of `response_format` json."""
    answer: Json = {"text": whole_text(answers, asked.question)}
    if asked.form.include:
        tokens = [token for piece in answers for token in piece.tokens if token.is_text]
        answer["logprobs"] = [_logprob(token) for token in tokens]
    return answer | {"usage": usage_object(seconds)}


def verbose_object(
    answers: Sequence[PieceAnswer], asked: SpeechRequest, seconds: float, language: str
) -> Json:
    """The answer of `response_format` verbose_json."""
    found = segments(answers, asked.question)
    answer: Json = {
        "task": "translate" if asked.question.translates else "transcribe",
        "language": "english" if asked.question.translates else language_name(language),
        "duration": seconds,
        "text": joined_text([segment.text for segment in found], asked.question),
    }
    granularities = asked.form.timestamp_granularities or ["segment"]
    if "segment" in granularities:
        answer["segments"] = [_segment_object(number, segment) for number, segment in enumerate(found)]
    if asked.form.wants_words:
        answer["words"] = [
            {"word": word.text.strip(), "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for word in words(answers, found, "english" if asked.question.translates else language)
        ]
    return answer | {"usage": usage_object(seconds)}


def _segment_object(number: int, segment: Segment) -> Json:
    return {
        "id": number,
        "seek": round(segment.seek_s * _FRAMES_PER_SECOND),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [token.token_id for token in segment.tokens],
        "temperature": segment.temperature,
        "avg_logprob": max(segment.mean_logprob, _LEAST_LOGPROB),
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_probability,
    }


def _logprob(token: Token) -> Json:
    return {
        "token": token.raw.decode("utf-8", "replace"),
        "logprob": max(token.logprob, _LEAST_LOGPROB),
        "bytes": list(token.raw),
    }
