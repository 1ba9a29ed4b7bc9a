"""A file of requests in OpenAI's batch format: one JSON object a line.

    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

Knows the lines' form and reports every mistake before anything is sent. Keeps where
a line is, not what is in it: bodies may hold gigabytes of pictures together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_KEYS = frozenset({"custom_id", "method", "url", "body"})
_MAX_SHOWN = 20


class RequestsError(Exception):
    """The file cannot be used. `str(error)` has one line for each mistake, with its place."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """Where one request is.

    Attributes:
        number: its line, from 1.
        offset: its first byte.
        length: its bytes.
        custom_id: its name, unique in the file.
        url: path below the gateway, for example "/v1/chat/completions".
    """

    number: int
    offset: int
    length: int
    custom_id: str
    url: str


def read_requests(path: Path, check_body: Callable[[Json], None]) -> list[RequestLine]:
    """Reads and checks all lines.

    Args:
        check_body: raises ValueError for a body that cannot be sent.

    Raises:
        RequestsError: the file cannot be read, or some lines are no proper requests.
    """
    lines: list[RequestLine] = []
    mistakes: list[str] = []
    first_place: dict[str, int] = {}
    for number, offset, raw in _raw_lines(path):
        try:
            request = _parse(raw)
            check_body(request["body"])
        except ValueError as error:
            mistakes.append(f"line {number}: {error}")
            continue
        custom_id = request["custom_id"]
        if custom_id in first_place:
            mistakes.append(
                f"line {number}: custom_id {custom_id!r} is that of line {first_place[custom_id]} too"
            )
            continue
        first_place[custom_id] = number
        lines.append(RequestLine(number, offset, len(raw), custom_id, request["url"]))
    if mistakes:
        shown = mistakes[:_MAX_SHOWN]
        if len(mistakes) > _MAX_SHOWN:
            shown.append(f"and {len(mistakes) - _MAX_SHOWN} more lines")
        raise RequestsError("\n".join(f"{path}: {mistake}" for mistake in shown))
    return lines


def read_body(path: Path, line: RequestLine) -> Json:
    """Reads one request's body again.

    Raises:
        RequestsError: the file changed meanwhile.
    """
    try:
        with path.open("rb") as file:
            file.seek(line.offset)
            request = _parse(file.read(line.length))
    except (OSError, ValueError):
        request = {}
    if request.get("custom_id") != line.custom_id:
        raise RequestsError(f"{path}: line {line.number}: the file changed while it was read")
    body: Json = request["body"]
    return body


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of every line that is not empty."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, offset, raw
                offset += len(raw)
    except OSError as error:
        raise RequestsError(f"{path}: {error.strerror}") from None


def _parse(raw: bytes) -> Json:
    try:
        request = json.loads(raw)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("no JSON: not UTF-8") from None
    except RecursionError:
        raise ValueError("no JSON: nested too deeply") from None
    if not isinstance(request, dict):
        raise ValueError("a JSON object is needed")
    _check(request)
    return request


def _check(request: Mapping[str, Any]) -> None:
    for name in request:
        if name not in _KEYS:
            raise ValueError(f"unknown key {name!r}; a request has {', '.join(sorted(_KEYS))}")
    if not isinstance(request.get("custom_id"), str) or not request["custom_id"]:
        raise ValueError("custom_id is a text that is not empty")
    if request.get("method", "POST") != "POST":
        raise ValueError(f"method is POST; it is {request['method']!r}")
    url = request.get("url")
    if not isinstance(url, str) or not url.startswith("/v1/"):
        raise ValueError(f"url is a path such as /v1/chat/completions; it is {url!r}")
    if not isinstance(request.get("body"), dict):
        raise ValueError("body is a JSON object")
    if request["body"].get("stream"):
        raise ValueError("body.stream: answers of a batch are whole; leave it out")
