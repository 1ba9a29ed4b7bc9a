"""A server as a process with everything that it starts: pinned to cores, logged, and ended whole.

Knows processes. Does not know what a server is, nor when it is ready.

Servers start workers, and workers start more, some in sessions of their own and some
outliving their parent. Whoever descends from the first process, shares its session or
carries its mark in the environment is of the tree.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

MARK = "BENCHMARK_TREE"
GRACE_SECONDS = 20.0
KILL_SECONDS = 10.0
_NOT_INHERITED = re.compile(r"(?i)percept_.*|.*_proxy|omp_num_threads|mkl_num_threads")
"""Settings of the caller's shell that would change what is measured."""


class ProcessTree:
    """A running command. A context manager: outside it nothing of the tree is left.

    Attributes:
        log: file that holds all it writes.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        variables: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
        grace_s: float = GRACE_SECONDS,
    ) -> None:
        """Starts nothing yet.

        Args:
            variables: added to the environment.
            cores: numbers of the cores it may run on; all of the caller's where empty.
            grace_s: seconds between the request to end and the kill.
        """
        self.log = log
        self._command = [str(part) for part in command]
        self._cores = cores
        self._grace_s = grace_s
        self._mark = uuid.uuid4().hex
        self._environment = {**inherited_environment(), **(variables or {}), MARK: self._mark}
        self._root: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        assert self._root is None, "started twice"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log, pinned(self._cores):
            self._root = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the first process."""
        assert self._root is not None, "not started"
        return self._root.pid

    @property
    def exit_code(self) -> int | None:
        """Of the first process; None while it runs."""
        assert self._root is not None, "not started"
        return self._root.poll()

    def members(self) -> set[psutil.Process]:
        """All living processes of the tree."""
        self._seen |= {process for process in psutil.process_iter() if self._belongs(process)}
        with suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.pid).children(recursive=True))
        self._seen = {process for process in self._seen if is_alive(process)}
        return set(self._seen)

    def stop(self) -> None:
        """Asks the first process to end, then kills what is left. Safe to call again.

        A second Ctrl-C on the way ends the waiting, not the killing.
        """
        if self._root is None:
            return
        try:
            self._ask_to_end()
        finally:
            self._kill_rest()
            self._root.wait()

    def tail(self, line_count: int = 15) -> str:
        """The last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-line_count:])

    def _ask_to_end(self) -> None:
        assert self._root is not None, "not started"
        self.members()
        if self._root.poll() is None:
            self._root.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._root.wait(self._grace_s)

    def _kill_rest(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        while (left := self.members()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def _belongs(self, process: psutil.Process) -> bool:
        # The session is asked first: a process may overwrite its environment with its title.
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == self.pid:
                return True
            return process.environ().get(MARK) == self._mark
        return False


def inherited_environment() -> dict[str, str]:
    """The caller's environment without what would change a server's behaviour."""
    return {name: text for name, text in os.environ.items() if not _NOT_INHERITED.fullmatch(name)}


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Runs this thread on some cores; processes started inside stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def is_alive(process: psutil.Process) -> bool:
    """Runs, or could; a zombie does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
