"""Uploads: what other clients write is read, whatever the pieces; what breaks a rule is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from gateway.budget import ByteBudget, Holding
from gateway.multipart import UploadForm, read_form
from gateway.transcription_form import parse_transcription_request
from shared.errors import InvalidRequestError, MediaTooLargeError, OverloadedError, UnsupportedMediaError

MOST = 5_000_000


def encoded(data: Mapping[str, Any], files: Any) -> tuple[str, bytes]:
    """A form as httpx writes it: its type and its bytes."""
    made = httpx.Request("POST", "http://127.0.0.1/", data=data, files=files)
    return made.headers["content-type"], made.read()


async def read(
    kind: str,
    body: bytes,
    *,
    size: int = 65_536,
    budget: ByteBudget | None = None,
    most: int = MOST,
    cut_off: bool = False,
    headers: Mapping[str, str] | None = None,
) -> UploadForm:
    pieces = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": cut_off or index + 1 < len(pieces)}
        for index, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> Any:
        return messages.pop(0)

    fields = {"content-type": kind, **(headers or {})}
    scope = {
        "type": "http",
        "method": "POST",
        "state": {},
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }
    holding = Holding(budget or ByteBudget(2 * MOST), MOST)
    try:
        return await read_form(Request(scope, receive), most, holding)
    finally:
        holding.free()


SONG = bytes(range(256)) * 300
FIELDS = {"model": "tiny", "prompt": "für\r\nein Bild", "timestamp_granularities[]": ["word", "segment"]}


@pytest.mark.parametrize("size", [1, 7, 4096, 10**6])
async def test_a_form_is_read_whatever_its_pieces(size: int) -> None:
    kind, body = encoded(FIELDS, {"file": ("a song.wav", SONG[: 3000 if size == 1 else None], "audio/wav")})
    form = await read(kind, body, size=size)
    assert form.file == SONG[: 3000 if size == 1 else None]
    assert form.fields == {
        "model": ["tiny"],
        "prompt": ["für\r\nein Bild"],
        "timestamp_granularities[]": ["word", "segment"],
    }
    asked = parse_transcription_request({**form.fields, "response_format": ["verbose_json"]})
    assert asked.timestamp_granularities == ["word", "segment"] and asked.wants_words


PREAMBLES = {
    "a line": b"This is a multi-part message.\r\n",
    "lines like boundaries": b"--\r\n --{boundary}\r\nx--{boundary}\r\n\r\n-\r\n--{almost}\r\n",
    "an empty line": b"\r\n",
    "bytes": bytes(range(256)) * 200 + b"\r\n",
}


@pytest.mark.parametrize("size", [1, 7, 4096, 10**6])
@pytest.mark.parametrize("name", PREAMBLES)
async def test_what_stands_in_front_and_behind_means_nothing(name: str, size: int) -> None:
    """RFC 2046 allows a preamble and an epilogue."""
    kind, body = encoded({"model": "tiny"}, {"file": ("song.wav", SONG[:3000])})
    boundary = kind.partition("boundary=")[2].encode()
    preamble = PREAMBLES[name].replace(b"{boundary}", boundary).replace(b"{almost}", boundary[:-1])
    for whole in (preamble + body, preamble + body + b"Good bye.\r\n--" + boundary + b"\r\nmore"):
        form = await read(kind, whole, size=size)
        assert form.file == SONG[:3000] and form.fields == {"model": ["tiny"]}


async def test_a_preamble_is_bounded() -> None:
    """A body without a boundary is not read to its end as one."""
    kind, body = encoded({"model": "tiny"}, {"file": ("song.wav", SONG)})
    with pytest.raises(InvalidRequestError):
        await read(kind, b"x" * 70_000 + b"\r\n" + body)


async def test_a_form_without_a_file_has_none() -> None:
    kind, body = encoded({"model": "tiny"}, {"other": ("x", b"abc")})
    form = await read(kind, body)
    assert form.file is None and form.fields["other"] == ["abc"]


def cut(kind: str, body: bytes) -> tuple[str, bytes]:
    return kind, body[:-10]


BAD: dict[str, tuple[Callable[[], tuple[str, bytes]], type[Exception]]] = {
    "no form": (lambda: ("application/json", b"{}"), UnsupportedMediaError),
    "no type": (lambda: ("", b"{}"), UnsupportedMediaError),
    "no boundary": (lambda: ("multipart/form-data", b"--x"), InvalidRequestError),
    "a long boundary": (lambda: (f"multipart/form-data; boundary={'x' * 300}", b""), InvalidRequestError),
    "nothing": (lambda: ("multipart/form-data; boundary=x", b""), InvalidRequestError),
    "noise": (lambda: ("multipart/form-data; boundary=x", SONG), InvalidRequestError),
    "another boundary": (
        lambda: ("multipart/form-data; boundary=x", encoded({}, {"file": b"abc"})[1]),
        InvalidRequestError,
    ),
    "the end is missing": (lambda: cut(*encoded({}, {"file": b"abc"})), InvalidRequestError),
    "a part without a name": (
        lambda: (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        ),
        InvalidRequestError,
    ),
    "a part without a head": (
        lambda: ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--\r\n"),
        InvalidRequestError,
    ),
    "two files": (
        lambda: encoded({}, [("file", ("a", b"abc")), ("file", ("b", b"abc"))]),
        InvalidRequestError,
    ),
    "many fields": (
        lambda: encoded({f"f{i}": "x" for i in range(99)}, {"file": b"abc"}),
        InvalidRequestError,
    ),
    "a long field": (lambda: encoded({"prompt": "x" * 200_000}, {"file": b"abc"}), InvalidRequestError),
    "no text": (
        lambda: encoded({}, {"file": b"abc", "prompt": ("p", b"\xff\xfe")}),
        InvalidRequestError,
    ),
    "a large file": (lambda: encoded({}, {"file": bytes(MOST + 1)}), MediaTooLargeError),
    "a large body": (lambda: encoded({}, {"file": bytes(MOST + 2_000_000)}), MediaTooLargeError),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_such_form_is_refused(name: str) -> None:
    make, error = BAD[name]
    budget = ByteBudget(2 * MOST)
    with pytest.raises(error) as caught:
        await read(*make(), budget=budget)
    assert type(caught.value) is error
    assert budget.held == 0


async def test_what_is_said_to_be_too_large_is_not_kept() -> None:
    """The body is thrown away within bounds; then the connection is closed."""
    kind, _ = encoded({}, {"file": b""})
    budget = ByteBudget(1)
    with pytest.raises(MediaTooLargeError):
        await read(kind, b"x", budget=budget, cut_off=True, headers={"content-length": str(10 * MOST)})


async def test_the_budget_of_all_requests_holds() -> None:
    with pytest.raises(OverloadedError):
        await read(*encoded({}, {"file": bytes(3_000_000)}), budget=ByteBudget(2_000_000))


async def test_a_client_that_leaves() -> None:
    with pytest.raises(ClientDisconnect):
        await read(*encoded({}, {"file": SONG}), cut_off=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": ["xml"]}, "response_format"),
        ({"temperature": ["hot"]}, "temperature"),
        ({"temperature": ["1.5"]}, "temperature"),
        ({"temperature": ["nan"]}, "temperature"),
        ({"language": ["x" * 100]}, "language"),
        ({"stream": ["perhaps"]}, "stream"),
        ({"model": ["a", "b"]}, "model"),
        ({"speed": ["2"]}, "speed"),
        ({"known_speaker_names[]": ["me"]}, "known_speaker_names"),
        (
            {"timestamp_granularities[]": ["syllable"], "response_format": ["verbose_json"]},
            "timestamp_granularities[0]",
        ),
        ({"timestamp_granularities[]": ["word"]}, "timestamp_granularities"),
        ({"include[]": ["logprobs"], "response_format": ["text"]}, "include"),
        ({"stream": ["true"], "response_format": ["srt"]}, "response_format"),
        ({"chunking_strategy": ['{"type": "server_vad"}']}, "chunking_strategy"),
        # As OpenAI's client writes an object.
        ({"chunking_strategy[type]": ["server_vad"]}, "chunking_strategy"),
    ],
    ids=str,
)
def test_fields_of_a_wrong_form(fields: dict[str, list[str]], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_transcription_request(fields)
    assert caught.value.param == param


def test_defaults() -> None:
    asked = parse_transcription_request({"user": ["me"], "chunking_strategy": ["auto"]})
    assert (asked.model, asked.language, asked.response_format) == ("", "", "json")
    assert (asked.temperature, asked.stream) == (0.0, False)
