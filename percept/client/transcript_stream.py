"""A transcript that comes piece by piece.

Knows how what is written reaches who reads. Does not know the wire.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from percept.client.transcript import Transcript, transcript_of
from shared.speech.question import SpeechQuestion
from shared.speech.text_flow import TextFlow
from shared.speech.transcribing import Transcribing


@dataclass(frozen=True, slots=True)
class TranscriptDelta:
    """New text of a transcript.

    Attributes:
        text: whole characters only; the texts of all deltas add up to the transcript's.
        start_s, end_s: where the piece of the recording is that it was heard in, in seconds.
    """

    text: str
    start_s: float
    end_s: float


class TranscriptStream(AsyncIterator[TranscriptDelta]):
    """The deltas of one transcript. Leave it early with `aclose`, or by dropping it: the work is cancelled.

    Attributes:
        transcript: the whole, once the stream has ended.
    """

    def __init__(self, question: SpeechQuestion, open_: Callable[[], Awaitable[Transcribing]]) -> None:
        """
        Args:
            open_: has the recording cut, and answers what writes its pieces down.
        """
        self.transcript: Transcript | None = None
        self._question = question
        self._open = open_
        self._deltas = self._write()

    def __aiter__(self) -> TranscriptStream:
        return self

    async def __anext__(self) -> TranscriptDelta:
        return await anext(self._deltas)

    async def aclose(self) -> None:
        """Cancels what still runs."""
        await self._deltas.aclose()

    async def _write(self) -> AsyncGenerator[TranscriptDelta, None]:
        transcribing = await self._open()
        flow, texts = TextFlow(self._question), list[str]()
        async with aclosing(transcribing.parts()) as parts:
            async for part in parts:
                if text := flow.said(part):
                    texts.append(text)
                    answer = transcribing.answers[part.index]
                    yield TranscriptDelta(text, answer.start_s, answer.end_s)
        self.transcript = transcript_of(transcribing, self._question, "".join(texts))
