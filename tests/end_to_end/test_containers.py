"""The Compose file's commands with the Compose file's environment, without containers.

Host names of services become loopback addresses, and ports free ones; all else
is as the file says.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.asking import picture, user
from tests.stack import START_TIMEOUT_S, Stack, clean_environment, free_port

pytestmark = pytest.mark.end_to_end


@dataclass(frozen=True, slots=True)
class ComposedService:
    """One service of the file, ready to be started here."""

    command: list[str]
    environment: dict[str, str]
    probe: list[str]


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Compose's ${NAME:-default}."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], text)


def composed(repository: Path, variables: dict[str, str]) -> dict[str, ComposedService]:
    """Reads the file as Compose would, with every address on loopback."""
    text = interpolated((repository / "docker-compose.yml").read_text(), variables)
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    ports: dict[str, int] = {}

    def here(word: str) -> str:
        # 0.0.0.0:PORT, 127.0.0.1:PORT and NAME:PORT mean the service on that port.
        def address(found: re.Match[str]) -> str:
            return f"{found[1]}127.0.0.1:{ports.setdefault(found[2], free_port())}"

        return re.sub(r"^((?:http://)?)(?:0\.0\.0\.0|127\.0\.0\.1|encoder|llm):(\d+)$", address, word)

    return {
        name: ComposedService(
            command=[here(word) for word in service["command"]],
            environment={key: str(value or "") for key, value in service["environment"].items()},
            probe=[here(word) for word in service["healthcheck"]["test"][1:]],
        )
        for name, service in services.items()
    }


def is_healthy(service: ComposedService) -> bool:
    assert service.probe[:2] == ["percept", "health"]
    command = [sys.executable, "-m", *service.probe]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture(scope="module")
def services(
    repository: Path, tiny_checkpoint: Callable[[str], Path]
) -> Iterator[dict[str, ComposedService]]:
    found = composed(repository, {"PERCEPT_MODEL": str(tiny_checkpoint("qwen2_vl"))})
    running: list[Stack] = []
    try:
        # In the order of depends_on, each after the others are healthy.
        for name in ("encoder", "llm", "gateway"):
            service = found[name]
            assert service.command[0] == "percept"
            assert not is_healthy(service)
            running.append(Stack(service.command[1:], environment=clean_environment(**service.environment)))
        deadline = time.monotonic() + START_TIMEOUT_S
        for name, service in found.items():
            while not is_healthy(service):
                assert time.monotonic() < deadline, (name, [stack.tail(10) for stack in running])
                time.sleep(0.2)
        yield found
        assert [stack.stop() for stack in reversed(running)] == [0, 0, 0]
    finally:
        for stack in running:
            stack.kill()


def test_the_composed_services_answer(services: dict[str, ComposedService]) -> None:
    listen = services["gateway"].command[services["gateway"].command.index("--listen") + 1]
    client = openai.OpenAI(base_url=f"http://{listen}/v1", api_key="none", timeout=60)
    # Healthy means that the LLM is there; the encoder is found within a second or two.
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[user(picture(51), "what is this?")],  # type: ignore[list-item]
        max_completion_tokens=4,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens > 12
