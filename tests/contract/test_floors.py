"""Imports point down only, and what must stay light is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_imports_point_down_only(repository: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("gateway.service", {"torch", "transformers", "numpy", "PIL"}),
        ("llm_service.engine.engine", {"torch", "transformers"}),
        ("encoder_service.settings", {"torch", "transformers", "numpy", "grpc"}),
        ("llm_service.settings", {"torch", "transformers", "numpy", "grpc"}),
        ("shared.settings", {"torch", "numpy", "grpc"}),
        ("shared.rpc.server", {"torch", "numpy"}),
    ],
)
def test_importing_stays_light(module: str, forbidden: set[str]) -> None:
    probe = f"import sys, {module}; print(sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_gateways_command_needs_only_its_own_libraries() -> None:
    """Its image installs no extra: what the others need is not there."""
    absent = ["torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub", "msgspec", "jinja2"]
    probe = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "import gateway.service, percept.commands.up, percept.commands.chat, percept.up_settings\n"
        "print(len(percept.up_settings.settings_classes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "4", done.stderr
