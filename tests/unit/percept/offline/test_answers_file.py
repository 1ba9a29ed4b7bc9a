"""The file of answers goes on after any end of its writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from percept.offline.answers_file import AnswersError, AnswersFile


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_have_the_batch_formats_form(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with AnswersFile(path) as answers:
        assert answers.done == set()
        answers.append("a", 200, "request-1", {"choices": ["ü\n\ud800"]})
        answers.append("b", 0, "", None, {"code": "timeout", "message": "late"})
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["response"] == {
        "status_code": 200,
        "request_id": "request-1",
        "body": {"choices": ["ü\n\ud800"]},
    }
    assert first["error"] is None and second["response"] is None
    assert second["error"]["code"] == "timeout"
    assert first["id"] != second["id"]


def test_cut_anywhere_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        for name in "abc":
            answers.append(name, 200, "", {"text": "x" * 20})
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with AnswersFile(path) as answers:
            kept = sum(end <= cut for end in ends)
            assert answers.done == set("abc"[:kept])
            answers.append("d", 200, "", {})
        assert ids_in(path) == [*"abc"[:kept], "d"]


def test_failures_are_asked_again_where_wanted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.append("good", 200, "", {})
        answers.append("bad", 400, "", {})
        answers.append("late", 0, "", None, {"code": "timeout", "message": ""})
        answers.append("also good", 200, "", {})
    with AnswersFile(path) as answers:
        assert answers.done == {"good", "bad", "late", "also good"}
    with AnswersFile(path, retry_failed=True) as answers:
        assert answers.done == {"good", "also good"}
        answers.append("bad", 200, "", {})
    assert ids_in(path) == ["good", "also good", "bad"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("retry_failed", [False, True])
def test_two_writers_are_one_too_many(tmp_path: Path, retry_failed: bool) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.append("bad", 400, "", {})
    with (
        AnswersFile(path, retry_failed=retry_failed),
        pytest.raises(AnswersError, match="another process"),
    ):
        AnswersFile(path)
    with AnswersFile(path):
        pass


@pytest.mark.parametrize("text", ["hello\n", "[]\n", '{"id": 1}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(AnswersError, match="line 1 is no answer"):
        AnswersFile(path)
    assert path.read_text() == text


def test_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(AnswersError):
        AnswersFile(tmp_path)
