"""A checkpoint that no model can be built of ends a service's start in one line that names it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stack import clean_environment

START_LIMIT_S = 120


def broken(folder: Path, checkpoint: Path, file: str, path: str, value: object) -> Path:
    """A copy of a checkpoint with one field of a JSON file changed."""
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text())
    *parents, name = path.split(".")
    place: Any = content
    for parent in parents:
        place = place[parent]
    place[name] = value
    (folder / file).write_text(json.dumps(content))
    return folder


def start(service: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Starts a service that is expected not to serve."""
    command = [sys.executable, "-m", "percept", service, "--model", str(folder), "--listen", "127.0.0.1:0"]
    return subprocess.run(
        [*command, "--log-level", "error"],
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
        env=clean_environment(),
    )


@pytest.mark.parametrize(
    ("service", "model_type", "file", "path", "value", "told"),
    [
        ("encoder", "ultravox", "config.json", "audio_config.encoder_attention_heads", 0, "encoder"),
        ("encoder", "granite_speech", "config.json", "encoder_config.conv_kernel_size", -1, "encoder"),
        ("encoder", "voxtral", "preprocessor_config.json", "hop_length", 0, "preprocessor"),
        ("llm", "ultravox", "config.json", "text_config.num_key_value_heads", 0, "language model"),
    ],
)
def test_numbers_that_build_nothing(
    service: str,
    model_type: str,
    file: str,
    path: str,
    value: object,
    told: str,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = broken(tmp_path / "broken", tiny_checkpoint(model_type), file, path, value)
    done = start(service, folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"percept {service}: ")
    assert f"{folder}: the {told} cannot be built from {file}" in last


@pytest.mark.parametrize("service", ["encoder", "llm"])
def test_layers_without_end(service: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = "text_config.num_hidden_layers"
    folder = broken(tmp_path / "broken", tiny_checkpoint("ultravox"), "config.json", path, 10**9)
    done = start(service, folder)
    assert done.returncode == 1
    told = f"{folder / 'config.json'}: {path} is {10**9}; a number of layers is at most 10000"
    assert done.stderr == f"percept {service}: {told}\n"


def test_a_tokenizer_that_cannot_be_read(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint("voxtral"), folder)
    (folder / "tokenizer.json").write_bytes(b"\x00\xff{")
    done = start("llm", folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"percept llm: {folder}: the tokenizer cannot be built from tokenizer.json")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("model_type", "token"),
    [("granite_speech", "<|audio|>"), ("voxtral", "[AUDIO]"), ("whisper", "<|startoftranscript|>")],
)
def test_a_tokenizer_without_a_token_that_prompts_need(
    model_type: str, token: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint(model_type), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(token, token.swapcase()))
    done = start("llm", folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"percept llm: {folder}: in the tokenizer (tokenizer.json)")
    assert token in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_tokenizer_without_words(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint("whisper"), folder)
    (folder / "tokenizer.json").unlink()
    done = start("llm", folder)
    assert done.returncode == 1
    assert done.stderr == f"percept llm: {folder} has no vocabulary: is tokenizer.json there?\n"


@pytest.mark.parametrize(
    ("service", "part"), [("encoder", "encoder.layers.0.fc1.weight"), ("llm", "decoder.layers.0.fc1.weight")]
)
def test_weights_that_are_no_numbers(
    service: str, part: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint("whisper"), folder)
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if part in name)
    tensors[name].flat[3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    done = start(service, folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"holds {name}, which has numbers that are not finite in float32" in done.stderr.splitlines()[-1]
