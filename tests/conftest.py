"""Fixtures that all tests share. What is expensive is made once for a session, and only when asked for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.oracle import Oracle

# Triton reads this when it is first imported: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

# A shell has what it starts in the background ignore interrupts, and so does all that is started from there:
# tests that interrupt a program need it to listen.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def needs_compiler() -> None:
    """The kernels for the CPU are compiled; where there is nothing to compile them, torch computes."""
    from shared.kernels.build import COMPILERS

    if not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        pytest.skip("there is no C++ compiler (Debian: apt-get install g++)")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the tiny random-weight checkpoint of a family, each once."""
    built: dict[str, Path] = {}

    def build(model_type: str) -> Path:
        if model_type not in built:
            from tests.checkpoints import build_tiny

            folder = tmp_path_factory.mktemp("checkpoints") / f"tiny-{model_type}"
            built[model_type] = build_tiny(model_type, folder)
        return built[model_type]

    return build


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """Plain transformers in a process of its own, started once."""
    from tests.oracle import Oracle

    asked = Oracle()
    yield asked
    asked.close()
