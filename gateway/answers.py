"""The LLM service's answer in OpenAI's form, streamed and whole. Pure: no I/O.

Knows OpenAI's response objects. Does not know how they travel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from protos.llm.v1 import llm_service_pb2

Json = dict[str, Any]

_FINISH_REASONS = {
    llm_service_pb2.FINISH_REASON_STOP: "stop",
    llm_service_pb2.FINISH_REASON_LENGTH: "length",
}
# JSON has no infinity; OpenAI writes an impossible token's logprob like this.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every object of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def envelope(self, kind: str, choices: list[Json]) -> Json:
        """An answer object around `choices`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.system_fingerprint,
        }


class ChunkWriter:
    """Turns frames into chunks: for each choice its role first, its reason once."""

    def __init__(self, head: AnswerHead, choice_count: int, *, with_usage: bool) -> None:
        self._head = head
        self._choice_count = choice_count
        self._with_usage = with_usage

    def opening(self) -> Iterator[Json]:
        """One chunk for each choice that says who speaks."""
        for index in range(self._choice_count):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, delta: llm_service_pb2.Delta) -> Iterator[Json]:
        """The chunk of new text; none where there is nothing to say yet."""
        if delta.text or delta.logprobs:
            logprobs = to_logprobs(delta.logprobs) if delta.logprobs else None
            yield self._chunk(delta.choice_index, {"content": delta.text}, logprobs)

    def finish(self, finish: llm_service_pb2.Finish) -> Iterator[Json]:
        """The chunk that ends a choice."""
        chunk = self._chunk(finish.choice_index, {})
        chunk["choices"][0].update(ending(finish))
        yield chunk

    def usage(self, usage: llm_service_pb2.Usage) -> Iterator[Json]:
        """The last chunk, where the client asked for it."""
        if self._with_usage:
            yield self._head.envelope("chat.completion.chunk", []) | {"usage": to_usage(usage)}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        chunk = self._head.envelope("chat.completion.chunk", [choice])
        if self._with_usage:
            chunk["usage"] = None
        return chunk


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    ending: Json = field(default_factory=dict)


class AnswerCollector:
    """Gathers frames into one whole answer."""

    def __init__(self, head: AnswerHead, choice_count: int, *, with_logprobs: bool) -> None:
        self._head = head
        self._choices = [_Choice() for _ in range(choice_count)]
        self._with_logprobs = with_logprobs

    def delta(self, delta: llm_service_pb2.Delta) -> None:
        choice = self._choices[delta.choice_index]
        choice.text.append(delta.text)
        choice.logprobs.extend(to_logprob(entry) for entry in delta.logprobs)

    def finish(self, finish: llm_service_pb2.Finish) -> None:
        self._choices[finish.choice_index].ending = ending(finish)

    def whole(self, usage: llm_service_pb2.Usage) -> Json:
        """The answer object."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return self._head.envelope("chat.completion", choices) | {"usage": to_usage(usage)}

    def _whole_choice(self, index: int, choice: _Choice) -> Json:
        logprobs = {"content": choice.logprobs, "refusal": None} if self._with_logprobs else None
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": "".join(choice.text),
                "refusal": None,
                "annotations": [],
            },
            "logprobs": logprobs,
            **choice.ending,
        }


def ending(finish: llm_service_pb2.Finish) -> Json:
    """Why a choice ended, and what stopped it."""
    stopped_by = finish.WhichOneof("stopped_by")
    known: Json = {
        "finish_reason": _FINISH_REASONS.get(finish.reason, "stop"),
        "stop_reason": getattr(finish, stopped_by) if stopped_by else None,
    }
    # Only models that are given tasks know the field.
    return known | {"task_answer": json.loads(finish.task_answer)} if finish.task_answer else known


def finish_reason(finish: llm_service_pb2.Finish) -> str:
    """OpenAI's name for why a choice ended."""
    return _FINISH_REASONS.get(finish.reason, "stop")


def to_logprobs(entries: Iterable[llm_service_pb2.TokenLogprob]) -> Json:
    """Log probabilities of consecutive tokens, in OpenAI's form."""
    return {"content": [to_logprob(entry) for entry in entries], "refusal": None}


def to_logprob(entry: llm_service_pb2.TokenLogprob) -> Json:
    """One token's log probability and its alternatives'."""
    return _alternative(entry.chosen) | {"top_logprobs": [_alternative(other) for other in entry.top]}


def _alternative(token: llm_service_pb2.TokenLogprob.Alternative) -> Json:
    return {
        "token": token.text,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.raw),
    }


def _by_modality(usage: llm_service_pb2.Usage) -> dict[str, int]:
    """Tokens of pictures, and of what else there is."""
    others = {"video": usage.video_token_count, "audio": usage.audio_token_count}
    return {"image": usage.image_token_count, **{name: count for name, count in others.items() if count}}


def to_usage(usage: llm_service_pb2.Usage) -> Json:
    """Token counts in OpenAI's form, with the shares of media as other servers name them."""
    return {
        "prompt_tokens": usage.prompt_token_count,
        "completion_tokens": usage.completion_token_count,
        "total_tokens": usage.prompt_token_count + usage.completion_token_count,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_token_count,
            "audio_tokens": usage.audio_token_count,
            "image_tokens": usage.image_token_count,
            "video_tokens": usage.video_token_count,
            "multimodal_tokens": _by_modality(usage),
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
