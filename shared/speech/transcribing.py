"""Has the pieces of one recording written down, several at once, and tells what comes in order.

Knows pieces and the frames of `Generate`. Does not know how a piece is asked about, nor the form of answers.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline
from shared.errors import OverloadedError
from shared.speech.judging import is_doubtful, is_silence
from shared.speech.question import Asking, SpeechQuestion
from shared.speech.transcript import Token

_LANGUAGE = re.compile(r"<\|([a-z]{2,4})\|>")
_WITHOUT_CHOICE = "en"
"""What a model hears that says no language."""


Frames = Sequence[llm_service_pb2.GenerateResponse]
Ask = Callable[[Asking, Callable[[Frames], None]], Awaitable[None]]
"""Has one piece written down: takes what is asked, and what takes its frames."""


@dataclass(slots=True)
class PieceAnswer:
    """What was written of one piece so far.

    Attributes:
        start_s, end_s: where the piece is in the recording, in seconds.
        text: all of it, without times.
        new_text: what the reader has not taken yet.
        news: frames that it has not taken yet, in order.
        done: the answer is complete.
        measures: how sure the model is; set with the end, where that was asked for.
        temperature: that its tokens are chosen with.
    """

    start_s: float
    end_s: float
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    new_text: str = ""
    news: list[llm_service_pb2.GenerateResponse] = field(default_factory=list)
    done: bool = False
    measures: llm_service_pb2.SpeechMeasures | None = None
    temperature: float = 0.0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def take(self, frame: llm_service_pb2.GenerateResponse, *, marked: bool) -> None:
        """Adds a frame.

        Args:
            marked: tokens of times and marks are among the text's.
        """
        new = tokens_of(frame)
        if marked:
            raw = b"".join(token.raw for token in new if token.is_text)
            text = self._decoder.decode(raw, final=frame.HasField("finish"))
        else:
            text = frame.delta.text
        self.tokens += new
        if frame.finish.HasField("speech_measures"):
            self.measures = frame.finish.speech_measures
        if frame.finish.token_seconds:
            self._set_times(frame.finish.token_seconds)
        self.text += text
        self.new_text += text
        self.news.append(frame)

    def become(self, tried: PieceAnswer) -> None:
        """Takes over an answer that was held back, for the reader to see."""
        self.text, self.tokens = tried.text, tried.tokens
        self.measures, self.temperature = tried.measures, tried.temperature
        self.new_text += tried.text
        self.done = True

    def fall_silent(self) -> None:
        """Nobody speaks: what was written is nothing."""
        self.text, self.tokens = "", []

    def _set_times(self, ends: Sequence[float]) -> None:
        """Each token is heard from where the one before ends."""
        starts = [0.0, *ends[:-1]]
        self.tokens = [
            replace(token, start_s=start, end_s=end)
            for token, start, end in zip(self.tokens, starts, ends, strict=True)
        ]


def tokens_of(frame: llm_service_pb2.GenerateResponse) -> list[Token]:
    """The tokens of a delta; none of another frame."""
    return [
        Token(entry.chosen.token_id, entry.chosen.raw, entry.chosen.logprob) for entry in frame.delta.logprobs
    ]


@dataclass(frozen=True, slots=True)
class Part:
    """News of one piece.

    Attributes:
        index: which piece.
        text: what is new of its text.
        frames: deltas and the finish.
    """

    index: int
    text: str
    frames: Frames


class Transcribing:
    """One recording's way to text.

    Attributes:
        answers: one for each piece.
        language: what is spoken, a code or a name; "" until it is known.
    """

    def __init__(
        self,
        question: SpeechQuestion,
        places: Sequence[tuple[float, float]],
        ask: Ask,
        deadline: Deadline,
        most_at_once: int,
    ) -> None:
        """
        Args:
            places: where each piece begins and ends in the recording, in seconds.
            most_at_once: pieces that are written down at a time.
        """
        self.answers = [PieceAnswer(start, end) for start, end in places]
        self.language = question.language
        self._marked = question.marked
        self._judges = question.judges and question.measured
        self._temperatures = question.temperatures
        self._ask = ask
        self._deadline = deadline
        self._most_at_once = most_at_once
        self._places = asyncio.Semaphore(most_at_once)
        self._changed = asyncio.Event()
        self._heard = asyncio.Event()
        self._begun = False
        if self.language or not self._marked:
            self._heard.set()

    async def parts(self) -> AsyncGenerator[Part, None]:
        """What comes, piece after piece. Closing it cancels whatever still runs.

        Raises:
            PerceptError: a piece failed.
        """
        tasks = [asyncio.create_task(self._run(index)) for index in range(len(self.answers))]
        for task in tasks:
            task.add_done_callback(lambda _: self._changed.set())
        try:
            for index, answer in enumerate(self.answers):
                while not answer.done or answer.news:
                    if answer.news:
                        part = Part(index, answer.new_text, answer.news)
                        answer.new_text, answer.news = "", []
                        yield part
                        continue
                    await self._change(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _change(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Waits for news, or for a piece's failure, which ends all."""
        for task in tasks:
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                raise fault
        await self._changed.wait()
        self._changed.clear()

    async def _run(self, index: int) -> None:
        if index > 0:
            # One language for all: the first piece says which.
            await self._heard.wait()
        async with self._places:
            answer = self.answers[index]
            if self._judges:
                answer.become(await self._judged(index))
            else:
                await self._carried_through(index, answer, self._temperatures[0])
                answer.done = True
        self._changed.set()

    async def _judged(self, index: int) -> PieceAnswer:
        """The first answer that is to be trusted, or the last of all that there is time for."""
        shown = self.answers[index]
        for temperature in self._temperatures:
            tried, started = PieceAnswer(shown.start_s, shown.end_s), time.monotonic()
            await self._carried_through(index, tried, temperature)
            if not is_doubtful(tried) or not self._has_time(time.monotonic() - started):
                break
        if is_silence(tried):
            tried.fall_silent()
        return tried

    def _has_time(self, took_s: float) -> bool:
        """Whether another try, and all pieces that still wait, fit easily into what is left.

        Args:
            took_s: what one try took.
        """
        waiting = sum(not answer.done for answer in self.answers) - 1
        return self._deadline.remaining_s() > 2 * took_s * (1 + waiting / self._most_at_once)

    async def _carried_through(self, index: int, answer: PieceAnswer, temperature: float) -> None:
        """What is begun is carried through; what has not begun is refused at once."""
        while True:
            try:
                return await self._attempt(index, answer, temperature)
            except OverloadedError as error:
                if not self._begun or answer.tokens:
                    raise
                await asyncio.sleep(min(error.retry_after, self._deadline.remaining_s()))

    async def _attempt(self, index: int, answer: PieceAnswer, temperature: float) -> None:
        answer.temperature = temperature
        shown = self.answers[index]

        def take(frames: Frames) -> None:
            for frame in frames:
                answer.take(frame, marked=self._marked)
                if not self._heard.is_set():
                    self._hear(answer)
            if answer is not shown:
                # Its text is held back; what it took to compute is told all the same.
                shown.news += frames
            self._begun = True
            self._changed.set()

        await self._ask(Asking(index, self.language, temperature), take)

    def _hear(self, answer: PieceAnswer) -> None:
        """The first token says the language, where the model chooses among several."""
        first = answer.tokens[0].raw.decode("utf-8", "replace") if answer.tokens else ""
        found = _LANGUAGE.fullmatch(first)
        self.language = found[1] if found else _WITHOUT_CHOICE
        self._heard.set()
