"""Compiles the kernels for this machine and keeps the result on disk.

Knows compilers, flags and the cache folder. Does not know what the kernels
compute. Needs no torch, so that a service compiles while it still imports.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock, Thread

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "source"
ENTRY = SOURCES / "program.cpp"
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-pthread",
)
COMPILERS = ("c++", "g++", "clang++")
COMPILE_TIMEOUT_S = 300.0
CHECK_TIMEOUT_S = 60.0

_BUILDING = Lock()


class BuildError(Exception):
    """The kernels cannot be had on this machine; says why."""


@lru_cache(maxsize=1)
def _built() -> Path:
    compiler = _find_compiler()
    target = cache_folder() / f"kernels-{_key(compiler)}.so"
    if not target.exists():
        _build(compiler, target)
    return target


def built_library() -> Path:
    """The compiled library, from the cache or made now (seconds).

    A library is used only after it has computed a small case rightly in a
    process of its own: whatever a compiler got wrong cannot take a service down.

    Raises:
        BuildError: no compiler, or none that gives a working library.
    """
    with _BUILDING:
        return _built()


def build_early() -> None:
    """Begins to compile in the background, while the caller imports and reads; failures show later."""

    def build() -> None:
        with suppress(BuildError):
            built_library()

    Thread(target=build, name="kernel-build", daemon=True).start()


def cache_folder() -> Path:
    """Where compiled code is kept: `percept` under XDG_CACHE_HOME, which is ~/.cache where it is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "percept"


def _find_compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    tried = wanted or ", ".join(COMPILERS)
    raise BuildError(f"no C++ compiler ({tried}) on PATH; install one (Debian: apt-get install g++)")


def _key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=30).stdout
    digest.update("\0".join((*FLAGS, platform.machine(), _processor())).encode() + version)
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(next((line for line in lines if line.startswith(kind)), "") for kind in kinds)


def _build(compiler: str, target: Path) -> None:
    """Compiles beside the target and moves it there whole, so that nobody sees half a library."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as folder:
            made = Path(folder) / target.name
            _run([compiler, *FLAGS, str(ENTRY), "-o", str(made)], COMPILE_TIMEOUT_S, "compiling the kernels")
            _run(
                [sys.executable, "-m", "shared.kernels.check", str(made)],
                CHECK_TIMEOUT_S,
                "trying the kernels",
            )
            os.replace(made, target)
    except OSError as error:
        raise BuildError(f"{target.parent} cannot be written: {error}") from error
    logger.info("compiled the kernels into %s", target)


def _run(command: list[str], timeout_s: float, what: str) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            cwd=SOURCES.parent.parent.parent,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{what} took longer than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise BuildError(f"{what} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
