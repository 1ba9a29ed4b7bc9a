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
from typing import TypedDict

from percept.client.conducting import Conducting
from percept.client.encoding import Encoding
from percept.client.items import Item, file_item
from percept.client.transcript import Transcript, transcript_of
from protos.llm.v1 import llm_service_pb2
from protos.media.v1 import media_pb2
from shared.deadline import Deadline
from shared.errors import InvalidRequestError, PerceptError
from shared.families.catalogue import FamilyFacts
from shared.speech.judging import DEFAULT_INCREMENT, temperatures
from shared.speech.question import Asking, SpeechQuestion
from shared.speech.transcribing import Frames, Transcribing

_NAMES = {
    "transcription.language": "language",
    "transcription.task": "translate",
    "transcription.previous_text": "prompt",
    "token_times": "words",
}


class TranscribeOptions(TypedDict, total=False):
    """How a recording is written down; see `Client.transcribe`."""

    language: str
    translate: bool
    prompt: str
    words: bool
    temperature: float
    temperature_increment_on_fallback: float
    seed: int | None
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class TranscribeWishes:
    """`TranscribeOptions` with the defaults of what is not said."""

    language: str = ""
    translate: bool = False
    prompt: str = ""
    words: bool = False
    temperature: float = 0.0
    temperature_increment_on_fallback: float = DEFAULT_INCREMENT
    seed: int | None = None
    timeout_s: float | None = None

    def question(self, facts: FamilyFacts | None, *, stream: bool) -> SpeechQuestion:
        """What is asked of every piece. What was said in a stream is not tried again.

        Raises:
            InvalidRequestError: the served family does not write down speech, or not so.
        """
        if facts is None or facts.speech is None:
            raise InvalidRequestError("the model does not write down speech", param="model")
        if self.words and not facts.speech.times:
            raise InvalidRequestError("the model does not tell when words are said", param="words")
        return SpeechQuestion(
            facts.speech,
            self.language,
            self.translate,
            self.prompt,
            wants_times=True,
            wants_words=self.words,
            temperatures=temperatures(self.temperature, self.temperature_increment_on_fallback),
            judges=not stream,
        )


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
        transcribing = await self.opened(recording, question, sampling, deadline, most_at_once)
        async with aclosing(transcribing.parts()) as parts:
            async for _ in parts:
                pass
        return transcript_of(transcribing, question)

    async def opened(
        self,
        recording: Item,
        question: SpeechQuestion,
        sampling: llm_service_pb2.SamplingParameters,
        deadline: Deadline,
        most_at_once: int,
    ) -> Transcribing:
        """Cuts a recording, and answers what writes its pieces down.

        Raises:
            PerceptError: it is no recording.
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

        async def ask(asking: Asking, take: Callable[[Frames], None]) -> None:
            item, (start, end) = items[asking.piece], places[asking.piece]
            request = llm_service_pb2.GenerateRequest(
                model=self._model,
                request_id=uuid.uuid4().hex,
                media=[item.wire],
                sampling=sampling,
            )
            question.put_into(request, end - start, asking)
            await self._ask(request, item, deadline, take)

        return Transcribing(question, places, ask, deadline, most_at_once)

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
