"""The line that says that everything is up, with a command to paste.

Knows where the examples lie. Does not know whether they are answered.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from percept.launcher.plan import Plan

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

EXAMPLE_REQUEST = _EXAMPLES / "request.json"
"""A picture and a question about it, ready to be sent."""

EXAMPLE_RECORDING = _EXAMPLES / "voice.wav"
"""Somebody speaks."""


def ready_line(plan: Plan, modalities: Collection[str] = ()) -> str:
    """One line: the model, the URL, and a curl that asks about a picture, or about a voice.

    Args:
        modalities: what the model takes, where that is known.
    """
    return f"Ready: {plan.model_name} answers at {plan.url}/v1   try: {example_command(plan, modalities)}"


def example_command(plan: Plan, modalities: Collection[str] = ()) -> str:
    """A command to paste that works from the folder where `percept up` was started."""
    hears_alone = "audio" in modalities and "image" not in modalities
    if not EXAMPLE_REQUEST.is_file():
        if hears_alone:
            return f"percept transcribe --url {plan.url} FILE"
        return f'percept chat --url {plan.url} --image FILE "What is in the picture?"'
    if hears_alone:
        url, content = f"{plan.url}/v1/audio/transcriptions", ["-F", f"file=@{_shown(EXAMPLE_RECORDING)}"]
    else:
        url = f"{plan.url}/v1/chat/completions"
        content = ["-H", "Content-Type: application/json", "-d", f"@{_shown(EXAMPLE_REQUEST)}"]
    command = shlex.join(["curl", "-sS", url, *content])
    if plan.needs_key:
        command += ' -H "Authorization: Bearer $PERCEPT_API_KEY"'
    return command


def _shown(path: Path) -> str:
    """The path from here when it lies below, in full otherwise."""
    here = Path(os.getcwd()).resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
