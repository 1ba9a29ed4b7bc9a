"""What a result was measured on: a figure without its machine says nothing.

Knows where the system keeps such facts. Takes no names, addresses or paths of the machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

NOTABLE_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(cores: Sequence[int]) -> dict[str, Any]:
    """Date, processor, memory, versions, and how busy the machine was at the start."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.+)$", information, re.MULTILINE)
    flags = set(re.findall(r"\w+", "".join(re.findall(r"^flags\s*:.*$", information, re.MULTILINE)[:1])))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "instructions": ", ".join(flag for flag in NOTABLE_FLAGS if flag in flags) or "none of note",
        "cores used": f"{len(cores)} of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": _commit(),
    }


def _commit() -> str:
    """The repository's commit, with a mark where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
