"""One service process: its start, its lines, its end.

Knows processes. Does not know when a service is ready, nor what follows its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping

from percept.launcher.plan import PlannedService
from shared.settings import PREFIX, to_environment

TAIL_LINE_COUNT = 15
"""Last lines that are kept to explain an end."""

_LINE_LIMIT = 64 * 1024


class ServiceProcess:
    """A running service, in a process group of its own.

    A Ctrl-C in the terminal reaches the launcher alone, which then stops the
    services in their order.
    """

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINE_COUNT)
        self._reading = asyncio.create_task(self._read(on_line))

    @classmethod
    async def start(cls, service: PlannedService, on_line: Callable[[str], None]) -> ServiceProcess:
        """Starts a service; `on_line` gets each line that it writes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "percept.launcher.child",
            str(os.getpid()),
            service.entry.name,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=service_environment(service, os.environ),
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> list[str]:
        """The last lines that it wrote."""
        return list(self._tail)

    async def wait(self) -> int:
        """Waits for its end, all of its lines read. Returns the exit status, -N for signal N."""
        status = await self._process.wait()
        # A grandchild that still holds the pipe must not hold us.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), timeout=1.0)
        return status

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to all that is left of its group after `grace_s` seconds."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout=grace_s)
        self.kill()
        await self.wait()
        self._reading.cancel()

    def kill(self) -> None:
        """SIGKILL to the whole group: the service's own child processes go with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, on_line: Callable[[str], None]) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                # Longer than the limit: what was read of it is dropped by the stream.
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._tail.append(text)
                on_line(text)


def service_environment(service: PlannedService, environment: Mapping[str, str]) -> dict[str, str]:
    """The service's environment: ours, with its settings in place of all of ours.

    Settings travel as variables rather than flags, so that an API key is in no
    list of processes.
    """
    inherited = {name: text for name, text in environment.items() if not name.upper().startswith(PREFIX)}
    threads = str(getattr(service.settings, "threads", None) or 1)
    # Before any library counts the cores for itself.
    limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    return {**inherited, **limits, "PYTHONUNBUFFERED": "1", **to_environment(service.settings)}


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
