"""What a newcomer sees: `percept up` with no model named, and the command that it prints."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
    expected = (EXAMPLE_REQUEST.parent / "request.answer.txt").read_text().strip()
    assert answer["choices"][0]["message"]["content"].strip() == expected
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "percept-tiny"


def test_the_request_holds_the_picture_beside_it(repository: Path) -> None:
    request = json.loads(EXAMPLE_REQUEST.read_text())
    (url,) = [
        part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"
    ]
    payload = base64.b64decode(url.partition(",")[2])
    assert payload == (repository / "examples" / "shapes.png").read_bytes()


def test_the_model_is_small_and_complete(repository: Path) -> None:
    folder = repository / "models" / "percept-tiny"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"} <= names
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < size <= 16 * 2**20
