"""A transcript that comes piece by piece.

Knows how what is written reaches who reads. Does not know the wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from percept.client.stream import FilledStream
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


class TranscriptStream(FilledStream[TranscriptDelta]):
    """The deltas of one transcript; see `FilledStream`."""

    def __init__(self, question: SpeechQuestion, open_: Callable[[], Awaitable[Transcribing]]) -> None:
        """
        Args:
            open_: has the recording cut, and answers what writes its pieces down.
        """
        whole: list[Transcript] = []

        async def write(put: Callable[[TranscriptDelta], Awaitable[None]]) -> None:
            transcribing = await open_()
            flow, texts = TextFlow(question), list[str]()
            async with aclosing(transcribing.parts()) as parts:
                async for part in parts:
                    if text := flow.said(part):
                        texts.append(text)
                        answer = transcribing.answers[part.index]
                        await put(TranscriptDelta(text, answer.start_s, answer.end_s))
            whole.append(transcript_of(transcribing, question, "".join(texts)))

        super().__init__(write)
        self._whole = whole

    @property
    def transcript(self) -> Transcript | None:
        """The whole, once the stream has ended."""
        return self._whole[0] if self._whole else None
