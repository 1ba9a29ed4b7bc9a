"""Packages that the machine lacks, from wheels that came with the source.

Knows folders and pip. Imports nothing but the standard library, since nothing
else may be there yet.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".gpu-wheels"
UNPACKED = ROOT / ".gpu-packages"
TELLING = (
    *("msgspec", "fastapi", "python_multipart", "pydantic_settings", "grpc_status", "soundfile"),
    *("pytest_asyncio", "pytest_timeout"),
)
"""Where all of these are installed, so is the rest."""


def use_wheels() -> None:
    """Unpacks the wheels, once, in front of what is installed; child processes find them too."""
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels or all(importlib.util.find_spec(name) for name in TELLING):
        return
    if not UNPACKED.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", str(UNPACKED), *map(str, wheels)], check=True)
    sys.path.insert(0, str(UNPACKED))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(UNPACKED), *([known] if known else [])])
