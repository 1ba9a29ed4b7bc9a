"""What a newcomer sees: `percept up` with no model named, and the command that it prints."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from percept.launcher.ready import EXAMPLE_REQUEST
from tests.stack import Stack, clean_environment, free_port

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`percept up` with nothing but a port, started from an unrelated folder."""
    stack = Stack(["up", "--port", str(free_port())], cwd=tmp_path_factory.mktemp("elsewhere"))
    try:
        stack.wait_for(r"^Ready: ")
        yield stack
        assert stack.stop() == 0
    finally:
        stack.kill()


def cases() -> list[dict[str, Any]]:
    """The questions about what is in examples/, with their right answers."""
    found: list[dict[str, Any]] = json.loads((EXAMPLE_REQUEST.parent / "answers.json").read_text())
    return found


def asked() -> str:
    """The question of the example request."""
    content = json.loads(EXAMPLE_REQUEST.read_text())["messages"][0]["content"]
    (text,) = [part["text"] for part in content if part["type"] == "text"]
    return str(text)


def ready_line(stack: Stack) -> str:
    (line,) = [line for line in stack.lines if line.startswith("Ready: ")]
    return line


def test_the_printed_command_answers_rightly(newcomer: Stack, tmp_path: Path) -> None:
    line = ready_line(newcomer)
    assert line.startswith("Ready: percept-tiny answers at http://127.0.0.1:")
    command = line.split("try: ")[1]
    assert command.startswith("curl ")
    # At once, as somebody who pastes it would, from another folder.
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        check=True,
    )
    answer = json.loads(done.stdout)
    (expected,) = [case["answer"] for case in cases() if case["question"] == asked()]
    assert answer["choices"][0]["message"]["content"].strip() == expected
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "percept-tiny"


@pytest.mark.parametrize("index", range(len(cases())))
def test_the_examples_are_answered_rightly(newcomer: Stack, repository: Path, index: int) -> None:
    case = cases()[index]
    url = re.findall(r"http://[^/ ]+", ready_line(newcomer))[0]
    items = [
        word
        for kind, flag in (("pictures", "--image"), ("sounds", "--audio"), ("films", "--video"))
        for name in case.get(kind, ())
        for word in (flag, str(repository / "examples" / name))
    ]
    command = [sys.executable, "-m", "percept", "chat", "--url", url, *items, case["question"]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=True
    )
    assert done.stdout.strip() == case["answer"]


def test_the_request_holds_the_picture_beside_it(repository: Path) -> None:
    """After drawing other pictures, write examples/request.json again."""
    content = json.loads(EXAMPLE_REQUEST.read_text())["messages"][0]["content"]
    (url,) = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    payload = base64.b64decode(url.partition(",")[2])
    assert payload == (repository / "examples" / "shapes.png").read_bytes()
    assert {"pictures": ["shapes.png"], "question": asked()} in [
        {"pictures": case.get("pictures"), "question": case["question"]} for case in cases()
    ]


def test_the_model_is_small_and_complete(repository: Path) -> None:
    folder = repository / "models" / "percept-tiny"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"} <= names
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < size <= 24 * 2**20
