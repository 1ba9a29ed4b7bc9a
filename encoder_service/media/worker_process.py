"""One worker process as its pool sees it.

Knows how a process starts, is asked and is ended. Does not know the other workers
nor who waits for the answer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess

from encoder_service.media import messages
from encoder_service.media.main_module import hidden_main
from encoder_service.media.worker import WorkerLimits, work
from shared.errors import UnavailableError
from shared.families.base import EncodedItem, Features, Preprocessor

_START_LIMIT_S = 120.0
_END_LIMIT_S = 2.0
_PRELOADED = ["encoder_service.media.preload"]


class WorkerLostError(Exception):
    """A worker died while it had an item."""


class WorkerProcess:
    """One process and our end of its socket.

    Used by one thread at a time, but for `kill`.

    Args:
        factory: see `WorkerPool`.
        limits: what one item may use.
    """

    def __init__(self, factory: Callable[[], Preprocessor], limits: WorkerLimits) -> None:
        self._factory = factory
        self._limits = limits
        self._process: ForkServerProcess | None = None
        self._channel: socket.socket | None = None
        self._unwanted = False

    def call(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        """Sends a job and waits for its result.

        Raises:
            TimeoutError: the worker was killed at its limit.
            WorkerLostError: the worker died.
            PerceptError: what the worker answered.
        """
        channel = self.ensure_alive()
        try:
            channel.settimeout(self._limits.seconds_for(job.modality))
            file = messages.payload_file(payload)
            try:
                messages.send(channel, job, file)
            finally:
                os.close(file)
            reply, result_file = messages.receive_reply(channel)
        except TimeoutError:
            self.end()
            raise
        except OSError as fault:
            self.end()
            raise WorkerLostError from fault
        return _result(reply, result_file)

    def ensure_alive(self) -> socket.socket:
        """Starts the process where there is none, and waits for its preprocessor.

        Raises:
            UnavailableError: it did not start, or was killed meanwhile.
            PerceptError: the factory's own.
        """
        if self._channel is not None and self._process is not None and self._process.is_alive():
            return self._channel
        self.end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._channel, self._process = ours, self._started(theirs)
        if self._unwanted:
            # Killed when there was no process to kill yet.
            self.end()
            raise UnavailableError("the worker process is not wanted any more")
        self._await_ready(ours)
        return ours

    def _started(self, channel: socket.socket) -> ForkServerProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        process = context.Process(target=work, args=(channel, self._factory, self._limits), daemon=True)
        with hidden_main():
            process.start()
        return process

    def kill(self) -> None:
        """Ends the process from any thread; the one that uses it sees it die. Does not wait."""
        # In this order: a process that starts just now is either seen here, or sees this there.
        self._unwanted = True
        process = self._process
        if process is not None and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def recover(self) -> None:
        """Starts a new process after `kill`, or after a death of another kind.

        Raises:
            PerceptError: see `ensure_alive`.
        """
        if self._unwanted:
            # A process that was killed may look alive for a moment.
            self._unwanted = False
            self.end()
        self.ensure_alive()

    def _await_ready(self, channel: socket.socket) -> None:
        channel.settimeout(_START_LIMIT_S)
        try:
            reply, _ = messages.receive_reply(channel)
        except OSError as fault:
            self.end()
            raise UnavailableError("a worker process did not start") from fault
        if isinstance(reply, messages.Failed):
            self.end()
            raise messages.to_error(reply)

    def end(self) -> None:
        """Kills the process, if there is one, and waits for its end."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            process.join(_END_LIMIT_S)


def _result(reply: messages.Reply, file: int | None) -> Features | EncodedItem:
    try:
        if isinstance(reply, messages.Failed):
            raise messages.to_error(reply)
        assert isinstance(reply, messages.Done) and file is not None, "a job is answered by a result"
        return messages.unpack(reply, file)
    finally:
        if file is not None:
            os.close(file)
