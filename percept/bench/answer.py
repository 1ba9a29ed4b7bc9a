"""One answer as it comes in: server-sent events, or a refusal.

Knows the stream of a chat completion, and what counts as a failure of it. Reads of
each event only what is measured. Does not know connections.
"""

from __future__ import annotations

import json
from typing import Any

REFUSAL_BYTES = 64 * 1024
MESSAGE_CHARS = 300
_DATA = b"data:"
_DONE = b"[DONE]"
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning")
_FAILED_REASONS = ("abort", "error")


class AnswerReader:
    """Takes an answer's bytes with the time of their arrival.

    Attributes:
        status: of HTTP, 0 before the headers.
        delta_times: when each delta with text arrived.
        finish_reason: the server's, or None.
        usage: the last `usage` object that a stream brought, or None.
        end_time: when the last byte that mattered arrived.
    """

    def __init__(self) -> None:
        self.status = 0
        self.delta_times: list[float] = []
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.end_time = 0.0
        self._is_stream = False
        self._done = False
        self._error: str | None = None
        self._rest = b""

    def begin(self, status: int, content_type: bytes) -> None:
        """Takes what the headers say."""
        self.status = status
        self._is_stream = status == 200 and content_type.lower().startswith(b"text/event-stream")

    def feed(self, data: bytes, time: float) -> None:
        """Takes bytes of the body that arrived at `time`."""
        if not self._done:
            self.end_time = time
        if not self._is_stream:
            self._rest = (self._rest + data)[:REFUSAL_BYTES]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(_DATA):
                self._take_event(line[len(_DATA) :].strip(), time)

    def _take_event(self, data: bytes, time: float) -> None:
        if data == _DONE:
            self._done = True
            return
        try:
            event = json.loads(data)
            if event.get("error"):
                self._fail(f"error in the stream: {_message_of(event['error'])}")
                return
            self._take_chunk(event, time)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            self._fail(f"unreadable event {data[:80]!r}: {error}")

    def _take_chunk(self, event: dict[str, Any], time: float) -> None:
        if usage := event.get("usage"):
            self.usage = usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in _TEXT_FIELDS):
                self.delta_times.append(time)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _fail(self, text: str) -> None:
        # The first failure is the cause, what follows is its consequence.
        self._error = self._error or text

    def verdict(self, broken: str | None = None) -> str | None:
        """What was wrong with the answer, now that nothing more will come; None if nothing was.

        Args:
            broken: why the connection ended before the answer's end, where it did.
        """
        if self.status and self.status != 200:
            return f"HTTP {self.status}: {_refusal(self._rest)}"
        if self._error is not None:
            return self._error
        if broken is not None and not self._done:
            return f"{broken}, {len(self.delta_times)} deltas" if self.delta_times else broken
        if not self._is_stream:
            return f"no event stream: {_shorten(self._rest)}"
        if not self._done and self.finish_reason is None:
            return "the stream ended without [DONE] and without a finish reason"
        if self.finish_reason in _FAILED_REASONS:
            return f"the server gave up: finish reason {self.finish_reason}"
        return None if self.delta_times else self._emptiness()

    def _emptiness(self) -> str:
        count = self.tokens("completion_tokens")
        return "empty answer" if count is None else f"empty answer: {count} tokens without text"

    def tokens(self, field: str) -> int | None:
        """A count of the usage object, or None where there is none."""
        count = (self.usage or {}).get(field)
        return count if isinstance(count, int) else None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that the server found in a cache, or None where it does not say."""
        details = (self.usage or {}).get("prompt_tokens_details")
        count = details.get("cached_tokens") if isinstance(details, dict) else None
        return count if isinstance(count, int) else None


def _refusal(body: bytes) -> str:
    try:
        answer = json.loads(body)
        return _message_of(answer.get("error") or answer.get("detail") or answer)
    except (ValueError, AttributeError):
        return _shorten(body) or "no text"


def _message_of(error: Any) -> str:
    message = error.get("message", error) if isinstance(error, dict) else error
    return _shorten(str(message).encode())


def _shorten(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").split())[:MESSAGE_CHARS]
