"""The LLM service's answers in OpenAI's legacy form, streamed and whole. Pure: no I/O.

Knows the objects of text completions. Does not know how they travel.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.answers import LEAST_LOGPROB, AnswerHead, ending, to_usage
from protos.llm.v1 import llm_service_pb2

Json = dict[str, Any]

_KIND = "text_completion"
_LISTS = ("text_offset", "token_logprobs", "tokens", "top_logprobs")


class LegacyLogprobs:
    """Log probabilities of one choice's tokens, as lists beside each other.

    Offsets count whole characters of the tokens' bytes, from where the answer begins in its text.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def lists(self, entries: Iterable[llm_service_pb2.TokenLogprob]) -> Json:
        """The next tokens."""
        found: Json = {name: [] for name in _LISTS}
        for entry in entries:
            chosen = entry.chosen
            found["text_offset"].append(self._offset)
            found["token_logprobs"].append(_logprob(chosen))
            found["tokens"].append(_name(chosen))
            found["top_logprobs"].append({_name(one): _logprob(one) for one in (chosen, *entry.top)})
            self._offset += len(self._decoder.decode(chosen.raw))
        return found


def _logprob(token: llm_service_pb2.TokenLogprob.Alternative) -> float:
    return max(token.logprob, LEAST_LOGPROB)


def _name(token: llm_service_pb2.TokenLogprob.Alternative) -> str:
    """A token's text; where its bytes are no whole characters, these: tokens must not look alike."""
    try:
        return token.raw.decode() or token.text
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


class _Choice:
    def __init__(self, echoed: str) -> None:
        self.text = [echoed] if echoed else []
        self.logprobs: Json = {name: [] for name in _LISTS}
        self.legacy = LegacyLogprobs(len(echoed))
        self.ending: Json = {}


class UsageSum:
    """Token counts of several prompts together."""

    def __init__(self) -> None:
        self._sum = llm_service_pb2.Usage()

    def add(self, usage: llm_service_pb2.Usage) -> None:
        """Adds one prompt's."""
        for field in usage.DESCRIPTOR.fields:
            setattr(self._sum, field.name, getattr(self._sum, field.name) + getattr(usage, field.name))

    def json(self) -> Json:
        """In OpenAI's form."""
        return to_usage(self._sum)


class TextCollector:
    """Gathers the frames of all prompts into one whole answer."""

    def __init__(
        self, head: AnswerHead, echoes: Sequence[str], choice_count: int, *, with_logprobs: bool
    ) -> None:
        """
        Args:
            echoes: what stands in front of each prompt's answers.
            choice_count: answers of each prompt.
        """
        self._head = head
        self._choice_count = choice_count
        self._choices = [_Choice(echo) for echo in echoes for _ in range(choice_count)]
        self._with_logprobs = with_logprobs
        self._usage = UsageSum()

    def take(self, prompt: int, frame: llm_service_pb2.GenerateResponse) -> None:
        """Adds a frame of the prompt of that index."""
        if frame.HasField("delta"):
            choice = self._choices[prompt * self._choice_count + frame.delta.choice_index]
            choice.text.append(frame.delta.text)
            for name, values in choice.legacy.lists(frame.delta.logprobs).items():
                choice.logprobs[name] += values
            return
        index = prompt * self._choice_count + frame.finish.choice_index
        self._choices[index].ending = ending(frame.finish)
        self._usage.add(frame.finish.usage)

    def whole(self) -> Json:
        """The answer object."""
        choices = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": choice.logprobs if self._with_logprobs else None,
                **choice.ending,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._head.envelope(_KIND, choices) | {"usage": self._usage.json()}


class TextChunkWriter:
    """Turns frames into chunks: for each choice its echo first, its reason once."""

    def __init__(
        self, head: AnswerHead, echoes: Sequence[str], choice_count: int, *, with_usage: bool
    ) -> None:
        """See `TextCollector`."""
        self._head = head
        self._choice_count = choice_count
        self._echoes = [echo for echo in echoes for _ in range(choice_count)]
        self._legacy = [LegacyLogprobs(len(echo)) for echo in self._echoes]
        self._with_usage = with_usage
        self._usage = UsageSum()

    def opening(self) -> Iterator[Json]:
        """One chunk for each choice that has an echo."""
        for index, echo in enumerate(self._echoes):
            if echo:
                yield self._chunk(index, echo)

    def take(self, prompt: int, frame: llm_service_pb2.GenerateResponse) -> Iterator[Json]:
        """The chunk of a frame; none where there is nothing to say yet."""
        if frame.HasField("delta"):
            delta = frame.delta
            if delta.text or delta.logprobs:
                index = prompt * self._choice_count + delta.choice_index
                logprobs = self._legacy[index].lists(delta.logprobs) if delta.logprobs else None
                yield self._chunk(index, delta.text, logprobs)
            return
        self._usage.add(frame.finish.usage)
        chunk = self._chunk(prompt * self._choice_count + frame.finish.choice_index, "")
        chunk["choices"][0].update(ending(frame.finish))
        yield chunk

    def usage(self) -> Iterator[Json]:
        """The last chunk, where the client asked for it."""
        if self._with_usage:
            yield self._head.envelope(_KIND, []) | {"usage": self._usage.json()}

    def _chunk(self, index: int, text: str, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        chunk = self._head.envelope(_KIND, [choice])
        if self._with_usage:
            chunk["usage"] = None
        return chunk
