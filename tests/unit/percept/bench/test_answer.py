"""Streams as servers write them, in pieces as sockets cut them, and all that can be wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from percept.bench.answer import AnswerReader


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    event = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}\n\n'
WHOLE = chunk("") + chunk("a") + chunk("b") + chunk(finish="length") + USAGE + DONE


def read(*pieces: bytes, status: int = 200, content_type: bytes = b"text/event-stream") -> AnswerReader:
    reader = AnswerReader()
    reader.begin(status, content_type)
    for time, piece in enumerate(pieces, 1):
        reader.feed(piece, float(time))
    return reader


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_may_come_in_any_pieces(size: int) -> None:
    reader = read(*(WHOLE[at : at + size] for at in range(0, len(WHOLE), size)))
    assert reader.verdict() is None
    assert len(reader.delta_times) == 2
    assert (reader.tokens("prompt_tokens"), reader.tokens("completion_tokens")) == (11, 3)
    assert reader.finish_reason == "length"


def test_a_role_or_an_empty_delta_is_no_first_token() -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    reader = read(role, chunk(""), chunk("a"), chunk("b"), chunk(finish="stop"), DONE)
    assert reader.delta_times == [3.0, 4.0]
    assert reader.end_time == 6.0


def test_lines_may_end_as_on_other_systems_and_comments_are_skipped() -> None:
    stream = b": ping\n\n" + WHOLE.replace(b"\n", b"\r\n")
    reader = read(stream[:20], stream[20:])
    assert reader.verdict() is None
    assert len(reader.delta_times) == 2


def test_thoughts_are_tokens_too() -> None:
    thought = b'data: {"choices": [{"delta": {"content": null, "reasoning_content": "hm"}}]}\n\n'
    assert read(thought, chunk("a", "stop"), DONE).delta_times == [1.0, 2.0]


def test_usage_may_come_with_the_last_chunk_and_done_may_be_missing() -> None:
    reader = read(chunk("a"), chunk("b", "stop", usage={"completion_tokens": 2}))
    assert reader.verdict() is None
    assert reader.tokens("completion_tokens") == 2
    assert reader.cached_tokens is None


def test_cached_tokens_are_taken_where_they_are_given() -> None:
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    assert read(chunk("a", "stop", usage=usage)).cached_tokens == 4
    assert read(chunk("a", "stop", usage={"prompt_tokens_details": None})).cached_tokens is None


@pytest.mark.parametrize(
    ("reader", "verdict"),
    [
        (read(b'{"error": {"message": "full"}}', status=429), "HTTP 429: full"),
        (read(b'{"detail": "Not Found"}', status=404), "HTTP 404: Not Found"),
        (read(b"<h1>Bad\n Gateway</h1>", status=502), "HTTP 502: <h1>Bad Gateway</h1>"),
        (read(status=503), "HTTP 503: no text"),
        (read(b'"odd"', status=400), 'HTTP 400: "odd"'),
        (
            read(chunk("a"), b'data: {"error": {"message": "engine died"}}\n\n', DONE),
            "error in the stream: engine died",
        ),
        (read(chunk("a"), b'event: error\ndata: {"error": "gone"}\n\n'), "error in the stream: gone"),
        (read(b'{"choices": []}', content_type=b"application/json"), 'no event stream: {"choices": []}'),
        (read(chunk("a")), "the stream ended without [DONE] and without a finish reason"),
        (read(chunk("a"), chunk(finish="abort"), DONE), "the server gave up: finish reason abort"),
        (read(chunk(""), chunk(finish="stop"), DONE), "empty answer"),
        (read(chunk(finish="length"), USAGE, DONE), "empty answer: 3 tokens without text"),
    ],
)
def test_what_is_wrong_is_said(reader: AnswerReader, verdict: str) -> None:
    assert reader.verdict() == verdict


@pytest.mark.parametrize("event", [b"{oops", b"[1, 2]", b'{"choices": [7]}', b'"text"', b"null"])
def test_unreadable_events_are_errors(event: bytes) -> None:
    verdict = read(chunk("a"), b"data: " + event + b"\n\n", DONE).verdict()
    assert verdict is not None and verdict.startswith("unreadable event")


def test_a_connection_that_broke_says_how_far_it_came() -> None:
    assert read(chunk("a"), chunk("b")).verdict("the server closed the connection") == (
        "the server closed the connection, 2 deltas"
    )
    assert AnswerReader().verdict("timeout after 3 s") == "timeout after 3 s"
    # All there was to say had been said.
    assert read(WHOLE).verdict("the server closed the connection") is None


def test_the_cause_is_kept_rather_than_its_consequence() -> None:
    reader = read(b'data: {"error": {"message": "first"}}\n\n', b'data: {"error": {"message": "second"}}\n\n')
    assert reader.verdict("the server closed the connection") == "error in the stream: first"
