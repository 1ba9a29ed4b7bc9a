"""What comes back for a prompt. Knows the wire's frames; does not know how they travel."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from protos.llm.v1 import llm_service_pb2

_REASONS = {llm_service_pb2.FINISH_REASON_STOP: "stop", llm_service_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token and the natural logarithm of its probability, before temperature and penalties.

    Attributes:
        text: U+FFFD stands for bytes that are no whole character.
        raw: the token's bytes.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token with the likeliest alternatives, likeliest first."""

    chosen: Alternative
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice.

    Attributes:
        index: which choice, from 0.
        text: whole characters only; may be empty.
        token_ids: the tokens since the last delta.
        logprobs: one for each token, where asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request; media count as their rows."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int
    video_tokens: int
    audio_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds: see `protos.llm.v1.Timings`."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class Completion:
    """One choice.

    Attributes:
        finish_reason: "stop" or "length"; None while it is not complete.
        stop_reason: the stop string or stop token that ended it, where one did.
        logprobs: one for each token, where asked for.
        task_answer: what the text says, where the prompt was a task: one entry, the task's, a text
            or lists of shapes in pixels and of labels (Florence-2). Set with `finish_reason`.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    task_answer: dict[str, Any] | None = None


@dataclass(slots=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        request_id: the request's name in logs.
        prompt: the text of the prompt, where it was given as text.
        prompt_token_ids: its tokens, where it was given as tokens; media are not expanded in them.
        outputs: the choices, by index.
        usage: set once every choice is complete.
        timings: as usage.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[Completion]
    usage: Usage | None = None
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.outputs[0].text


class AnswerCollector:
    """Gathers frames into an answer."""

    def __init__(self, request: llm_service_pb2.GenerateRequest) -> None:
        is_text, is_tokens = request.HasField("text"), request.HasField("token_ids")
        with_logprobs = request.HasField("top_logprobs")
        self.answer = Answer(
            request_id=request.request_id,
            prompt=request.text if is_text else None,
            prompt_token_ids=list(request.token_ids.ids) if is_tokens else None,
            outputs=[
                Completion(index, logprobs=[] if with_logprobs else None)
                for index in range(request.sampling.choice_count or 1)
            ],
        )

    def take(self, frame: llm_service_pb2.GenerateResponse) -> Delta | None:
        """Adds a frame; returns its delta, where it is one."""
        if frame.HasField("finish"):
            self._finish(frame.finish)
            return None
        delta = _delta(frame.delta)
        choice = self.answer.outputs[delta.index]
        choice.text += delta.text
        choice.token_ids += delta.token_ids
        if choice.logprobs is not None:
            choice.logprobs += delta.logprobs
        return delta

    def _finish(self, finish: llm_service_pb2.Finish) -> None:
        choice = self.answer.outputs[finish.choice_index]
        choice.finish_reason = _REASONS.get(finish.reason, "stop")
        stopped_by = finish.WhichOneof("stopped_by")
        choice.stop_reason = getattr(finish, stopped_by) if stopped_by else None
        choice.task_answer = json.loads(finish.task_answer) if finish.task_answer else None
        if finish.HasField("usage"):
            usage, timings = finish.usage, finish.timings
            self.answer.usage = Usage(
                usage.prompt_token_count,
                usage.completion_token_count,
                usage.cached_token_count,
                usage.image_token_count,
                usage.video_token_count,
                usage.audio_token_count,
            )
            self.answer.timings = Timings(
                timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds
            )


def _delta(delta: llm_service_pb2.Delta) -> Delta:
    logprobs = tuple(
        TokenLogprob(_alternative(entry.chosen), tuple(map(_alternative, entry.top)))
        for entry in delta.logprobs
    )
    return Delta(delta.choice_index, delta.text, tuple(delta.token_ids), logprobs)


def _alternative(token: llm_service_pb2.TokenLogprob.Alternative) -> Alternative:
    return Alternative(token.token_id, token.text, token.raw, token.logprob)
