"""Compiles the kernels for this machine, once, and gives the result to every process that asks.

Knows compilers and flags. Does not know what the kernels compute, nor how a
folder keeps what was compiled. Needs no torch, so that a service compiles while
it still imports.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

from shared.kernels.cache import Cache, open_cache

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
    "-Wno-psabi",  # no large vector crosses the library's border
)
WITHOUT_TILES = "-DPERCEPT_NO_TILES"
COMPILERS = ("c++", "g++", "clang++")
VERSION_TIMEOUT_S = 30.0
COMPILE_TIMEOUT_S = 180.0
"""A busy core of this decade takes ten seconds."""
CHECK_TIMEOUT_S = 60.0
OUTPUT_END = 2000
"""Characters of a failed command's output that are told."""


class BuildError(Exception):
    """The kernels cannot be had on this machine; says why."""


class _Outcome:
    """What this process has found out: a library or a reason, asked for any number of times."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._library: Path | None = None
        self._error: BuildError | None = None

    def library(self) -> Path:
        """See `built_library`."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._library is None:
                try:
                    self._library = build()
                except BuildError as error:
                    self._error = error
                    raise
            return self._library


_OUTCOME = _Outcome()


def built_library() -> Path:
    """The compiled library, from the cache or made now (seconds). What failed once is not tried again.

    Raises:
        BuildError: no compiler, or none that gives a working library.
    """
    return _OUTCOME.library()


def build_early() -> None:
    """Begins to compile in the background, while the caller imports and reads; failures show later."""

    def begin() -> None:
        with suppress(BuildError):
            built_library()

    Thread(target=begin, name="kernel-build", daemon=True).start()


def build(flags: tuple[str, ...] = FLAGS) -> Path:
    """The library of this compiler, these flags and this processor.

    It is used only after it has computed small cases rightly in a process of
    its own: whatever a compiler got wrong cannot take a service down.

    Raises:
        BuildError: no compiler, or none that gives a working library.
    """
    compiler = _find_compiler()
    try:
        cache = open_cache()
        name = f"kernels-{_key(compiler, flags)}.so"
        with cache.locked(COMPILE_TIMEOUT_S + CHECK_TIMEOUT_S):
            return cache.find(name) or _compile(compiler, flags, cache, name)
    except OSError as error:
        raise BuildError(f"the compiled kernels cannot be kept: {error}") from error


def _find_compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    tried = wanted or ", ".join(COMPILERS)
    raise BuildError(f"no C++ compiler ({tried}) on PATH; install one (Debian: apt-get install g++)")


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """Changes with the sources, the flags, the compiler, the C library and the processor."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = _run([compiler, "--version"], VERSION_TIMEOUT_S, f"{compiler} --version")
    facts = (*flags, compiler, version, *platform.libc_ver(), platform.machine(), _processor())
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(next((line for line in lines if line.startswith(kind)), "") for kind in kinds)


def _compile(compiler: str, flags: tuple[str, ...], cache: Cache, name: str) -> Path:
    with tempfile.TemporaryDirectory(dir=cache.folder, prefix="building-") as folder:
        made = Path(folder) / name
        try:
            _make(compiler, flags, made)
        except BuildError as error:
            if "amx_tile" not in _processor():
                raise
            logger.warning("tile registers are left out, which is slower: %s", error)
            _make(compiler, (*flags, WITHOUT_TILES), made)
        kept = cache.keep(made)
    logger.info("compiled the kernels into %s", kept)
    return kept


def _make(compiler: str, flags: tuple[str, ...], made: Path) -> None:
    """Compiles to a file and tries what has come out."""
    _run([compiler, *flags, str(ENTRY), "-o", str(made)], COMPILE_TIMEOUT_S, "compiling the kernels")
    _run([sys.executable, "-m", "shared.kernels.check", str(made)], CHECK_TIMEOUT_S, "trying the kernels")


def _run(command: list[str], timeout_s: float, what: str) -> str:
    """What a command prints.

    Raises:
        BuildError: it cannot be run, fails, or takes too long; then it ends with all it has started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=SOURCES.parent.parent.parent,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{what}: {error}") from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise BuildError(f"{what} took longer than {timeout_s:g} s") from None
    if process.returncode != 0:
        raise BuildError(f"{what} failed ({process.returncode}): {output.strip()[-OUTPUT_END:]}")
    return output
