"""A file of requests: every mistake is told with its line, and nothing is sent before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from percept.offline.requests_file import RequestsError, read_body, read_requests


def line(custom_id: Any = "a", **changes: Any) -> str:
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"n": 1}}
    return json.dumps({key: value for key, value in {**request, **changes}.items() if value is not ...})


def write(tmp_path: Path, *lines: str, end: str = "\n") -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def accept(body: Any) -> None:
    pass


def test_lines_are_found_again(tmp_path: Path) -> None:
    path = write(tmp_path, line("ä", body={"n": 2}), "", "  ", line("b", body={"n": "ü"}), end="")
    lines = read_requests(path, accept)
    assert [(one.number, one.custom_id) for one in lines] == [(1, "ä"), (4, "b")]
    assert [read_body(path, one) for one in lines] == [{"n": 2}, {"n": "ü"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "a JSON object"),
        (line(3), "custom_id"),
        (line(""), "custom_id"),
        (line(...), "custom_id"),
        (line(method="GET"), "method is POST"),
        (line(url="http://host/v1/chat/completions"), "url"),
        (line(url=...), "url"),
        (line(body=[]), "body"),
        (line(body={"stream": True}), "body.stream"),
        (line(more=1), "unknown key 'more'"),
        (line("good"), "that of line 1 too"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, line("good"), text, line("other"))
    with pytest.raises(RequestsError) as caught:
        read_requests(path, accept)
    (told,) = str(caught.value).splitlines()
    assert told.startswith(f"{path}: line 2: ") and reason in told


def test_all_mistakes_are_told_at_once_within_reason(tmp_path: Path) -> None:
    path = write(tmp_path, *["{"] * 50)
    with pytest.raises(RequestsError) as caught:
        read_requests(path, accept)
    told = str(caught.value).splitlines()
    assert len(told) == 21 and "and 30 more lines" in told[-1]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"custom_id": "\xff"}\n')
    with pytest.raises(RequestsError, match="line 1: no JSON"):
        read_requests(path, accept)


def test_what_the_caller_refuses_is_told_too(tmp_path: Path) -> None:
    def refuse(body: Any) -> None:
        raise ValueError("no such picture")

    with pytest.raises(RequestsError, match="line 1: no such picture"):
        read_requests(write(tmp_path, line()), refuse)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestsError, match="No such file"):
        read_requests(tmp_path / "none", accept)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, line("a"), line("b"))
    lines = read_requests(path, accept)
    write(tmp_path, line("longer"), line("b"))
    with pytest.raises(RequestsError, match="changed"):
        read_body(path, lines[1])
