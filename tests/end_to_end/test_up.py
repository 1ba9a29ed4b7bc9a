"""`percept up` from its start to its end: mistakes, crashes, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest

from percept.launcher.supervisor import MAX_RESTARTS
from shared.families import supported_model_types
from tests.asking import picture, user
from tests.stack import START_TIMEOUT_S, Stack, UpStack, clean_environment, free_port

pytestmark = pytest.mark.end_to_end


def refused(*arguments: str) -> str:
    """Runs `percept up` that cannot start; returns what it wrote."""
    stack = Stack(["up", "--port", str(free_port()), *arguments])
    try:
        assert stack.process.wait(timeout=START_TIMEOUT_S) == 1, stack.tail()
    finally:
        stack.kill()
    time.sleep(0.1)
    assert "Traceback" not in stack.tail()
    return stack.tail()


def gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Waits for processes to end; returns those that have not."""
    return psutil.wait_procs(processes, timeout=timeout_s)[1]


def test_a_model_that_is_not_there_is_named() -> None:
    text = refused("--model", "/no/such/checkpoint")
    assert "Stopping everything" in text
    assert "/no/such/checkpoint" in text


def test_a_model_of_no_known_family_says_which_there_are(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_checkpoint("qwen2_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "resnet"}))
    text = refused("--model", str(folder))
    assert "resnet" in text
    assert ", ".join(supported_model_types()) in " ".join(text.split())


def test_a_checkpoint_without_weights_says_so(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "unweighted"
    shutil.copytree(tiny_checkpoint("qwen2_vl"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "safetensors" in refused("--model", str(folder))


def test_a_service_that_crashes_again_and_again_ends_everything(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    stack = UpStack(tiny_checkpoint("qwen2_vl"))
    try:
        everything = psutil.Process(stack.process.pid).children(recursive=True)
        for _ in range(MAX_RESTARTS):
            os.kill(stack.services("gateway")[0].pid, signal.SIGKILL)
            stack.wait_for(r"gateway ended: killed by SIGKILL; starting it again")
            stack.wait_for(r"^gateway \| ready")
        os.kill(stack.services("gateway")[0].pid, signal.SIGKILL)
        assert stack.process.wait(timeout=60) == 1
        assert f"gateway ended: killed by SIGKILL, after {MAX_RESTARTS} restarts" in stack.tail()
        assert "Its last lines:" in stack.tail(200)
        assert not gone(everything, 5)
    finally:
        stack.kill()


def test_services_do_not_outlive_a_launcher_that_was_killed(tiny_checkpoint: Callable[[str], Path]) -> None:
    stack = UpStack(tiny_checkpoint("qwen2_vl"))
    everything = psutil.Process(stack.process.pid).children(recursive=True)
    assert len(everything) >= 4
    stack.process.kill()
    left = gone(everything, 30)
    for process in left:
        process.kill()
    assert not left


def test_without_a_working_compiler_torch_answers(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Kernels of our own are a matter of speed alone, and the log says that they are missing."""
    stack = UpStack(tiny_checkpoint("qwen2_vl"), environment=clean_environment(CXX="/bin/false"))
    try:
        said = [line for line in stack.lines if "torch computes, which is slower: /bin/false" in line]
        assert {line.split()[0] for line in said} == {"encoder", "llm"}
        client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", timeout=60)
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[user(picture(3), "what is this?")],  # type: ignore[list-item]
            max_tokens=4,
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
    finally:
        stack.kill()


def test_the_config_file_is_read(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """One file for all services; the mistake of one of them is found before anything starts."""
    path = tmp_path / "percept.toml"
    model = tiny_checkpoint("qwen2_vl")
    path.write_text(f'model = "{model}"\nport = {free_port()}\n[llm]\nmax-num-seqs = "many"\n')
    command = [sys.executable, "-m", "percept", "up", "--config", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), timeout=60, check=False
    )
    assert done.returncode == 2
    assert '"max-num-seqs" in the --config file' in done.stderr
