"""Recordings written down, piece by piece, without a gateway.

Knows who cuts a recording and who writes its pieces down. What is asked about them and what comes
of it is `shared/speech`'s.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from percept.client.conducting import Conducting
from percept.client.encoding import Encoding
from percept.client.items import Item, file_item
from protos.llm.v1 import llm_service_pb2
from protos.media.v1 import media_pb2
from shared.deadline import Deadline
from shared.errors import InvalidRequestError, PerceptError
from shared.families.languages import language_name
from shared.speech.question import SpeechQuestion
from shared.speech.transcribing import Frames, Transcribing
from shared.speech.transcript import Segment
from shared.speech.words import Word
from shared.speech.written import segments, whole_text, words

_NAMES = {
    "transcription.language": "language",
    "transcription.task": "translate",
    "transcription.previous_text": "prompt",
    "token_times": "words",
}


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


class Transcriber:
    """Writes recordings down on the services of a client."""

    def __init__(self, conducting: Conducting, encoding: Encoding, model: str) -> None:
        self._conducting = conducting
        self._encoding = encoding
        self._model = model

    async def transcribe(
        self,
        recording: Item,
        question: SpeechQuestion,
        sampling: llm_service_pb2.SamplingParameters,
        deadline: Deadline,
        most_at_once: int,
    ) -> Transcript:
        """Cuts a recording and has its pieces written down.

        Raises:
            PerceptError: it is no recording, or a piece failed.
        """
        if recording.wire.form != media_pb2.MEDIA_FORM_FILE:
            raise InvalidRequestError("embeddings cannot be transcribed", param=recording.param)
        cut = await self._encoding.split(recording, deadline)
        items = await asyncio.to_thread(
            lambda: [
                recording
                if piece.payload is recording.payload
                else file_item(piece.payload, "audio", recording.wire.settings, recording.param)
                for piece in cut
            ]
        )
        places = [(piece.start_s, piece.end_s) for piece in cut]

        async def ask(index: int, language: str, take: Callable[[Frames], None]) -> None:
            request = llm_service_pb2.GenerateRequest(
                model=self._model,
                request_id=uuid.uuid4().hex,
                media=[items[index].wire],
                sampling=sampling,
            )
            start, end = places[index]
            question.put_into(request, end - start, language)
            await self._ask(request, items[index], deadline, take)

        transcribing = Transcribing(question, places, ask, deadline, most_at_once)
        async with aclosing(transcribing.parts()) as parts:
            async for _ in parts:
                pass
        return _transcript(transcribing, question)

    async def _ask(
        self,
        request: llm_service_pb2.GenerateRequest,
        item: Item,
        deadline: Deadline,
        take: Callable[[Frames], None],
    ) -> None:
        async def receive(frame: llm_service_pb2.GenerateResponse) -> None:
            take([frame])

        try:
            await self._conducting.generate(request, [item], deadline, receive)
        except PerceptError as error:
            error.param = _NAMES.get(error.param or "", error.param)
            raise


def _transcript(transcribing: Transcribing, question: SpeechQuestion) -> Transcript:
    answers = transcribing.answers
    found = segments(answers, question)
    spoken = language_name(transcribing.language) if transcribing.language else ""
    written = "english" if question.translates else spoken
    return Transcript(
        text=whole_text(answers, question),
        language=spoken,
        duration_s=answers[-1].end_s,
        segments=tuple(found),
        words=tuple(words(answers, found, written)) if question.wants_words else (),
    )
