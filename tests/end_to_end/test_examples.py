"""The examples and `percept chat` against the running services."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.asking import picture, template_messages, user
from tests.end_to_end.conftest import MODEL
from tests.reference import ReferenceModel
from tests.stack import UpStack, clean_environment

pytestmark = pytest.mark.end_to_end

QUESTION = "what is this?"


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    picture(61).save(path)
    return path


@pytest.fixture(scope="module")
def beginning(reference: ReferenceModel) -> str:
    """The first words of the right answer, as plain transformers gives it."""
    image = picture(61)
    prompt = reference.chat(template_messages([user(image, QUESTION)]))
    ids = reference.generate(prompt, [image], 16)
    return str(reference.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def run(command: list[str], repository: Path) -> str:
    done = subprocess.run(
        command,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=90,
        env={**clean_environment(), "PYTHONPATH": os.fspath(repository), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_grpc_client(stack: UpStack, picture_file: Path, beginning: str, repository: Path) -> None:
    encoder, llm = stack.services("encoder")[0].address, stack.services("llm")[0].address
    script = str(repository / "examples" / "grpc_client.py")
    output = run(
        [sys.executable, script, "--encoder", encoder, "--llm", llm, str(picture_file), QUESTION], repository
    )
    assert output.strip().startswith(beginning)
    stack.wait_until_idle(2)


def test_openai_client(stack: UpStack, picture_file: Path, repository: Path) -> None:
    script = str(repository / "examples" / "openai_client.py")
    output = run(
        [sys.executable, script, "--url", f"{stack.url}/v1", str(picture_file), QUESTION], repository
    )
    assert output.strip()


def test_chat(stack: UpStack, picture_file: Path, beginning: str, repository: Path) -> None:
    flags = ["--url", stack.url, "--model", MODEL, "--max-tokens", "16", "--temperature", "0"]
    command = [sys.executable, "-m", "percept", "chat", *flags, "--image", str(picture_file), QUESTION]
    assert run(command, repository).strip() == beginning


def test_chat_says_what_the_gateway_refused(stack: UpStack, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    command = [sys.executable, "-m", "percept", "chat", "--url", stack.url, "--image", str(broken), QUESTION]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False
    )
    assert done.returncode == 1
    assert f"percept chat: --image {broken}: 400: " in done.stderr
    assert "Traceback" not in done.stderr
