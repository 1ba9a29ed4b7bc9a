"""The line that says that everything is up, with a command to paste.

Knows where the example request lies. Does not know whether it is answered.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from percept.launcher.plan import Plan

EXAMPLE_REQUEST = Path(__file__).resolve().parents[2] / "examples" / "request.json"
"""A picture and a question about it, ready to be sent."""


def ready_line(plan: Plan) -> str:
    """One line: the model, the URL, and a curl that asks about a picture."""
    return f"Ready: {plan.model_name} answers at {plan.url}/v1   try: {example_command(plan)}"


def example_command(plan: Plan) -> str:
    """A command to paste that works from the folder where `percept up` was started."""
    if not EXAMPLE_REQUEST.is_file():
        return f'percept chat --url {plan.url} --image FILE "What is in the picture?"'
    words = ["curl", "-sS", f"{plan.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    command = shlex.join([*words, "-d", f"@{_shown(EXAMPLE_REQUEST)}"])
    if plan.needs_key:
        command += ' -H "Authorization: Bearer $PERCEPT_API_KEY"'
    return command


def _shown(path: Path) -> str:
    """The path from here when it lies below, in full otherwise."""
    here = Path(os.getcwd()).resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
