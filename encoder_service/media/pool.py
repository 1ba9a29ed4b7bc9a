"""The pool of worker processes.

Knows that a worker may hang, crash or be killed, and that this must cost one item
at most. Does not know what workers do. A pool of its own rather than a library's:
each worker has its own socket, so that one that dies holds no lock and leaves no
half message to the others.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from typing import TypeVar

from encoder_service.media import messages
from encoder_service.media.worker import WorkerLimits, work
from shared.errors import BadMediaError, UnavailableError
from shared.families.base import EncodedItem, Features, Preprocessor

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

_START_LIMIT_S = 120.0
_END_LIMIT_S = 2.0
_PRELOADED = ["encoder_service.media.preload"]


class WorkerLostError(Exception):
    """A worker died while it had an item."""


class WorkerPool:
    """Runs jobs in worker processes, one each at a time.

    Args:
        factory: makes the preprocessor, once in each worker. Travels to the
            workers by pickle, so it is a module's function or a partial of one.
        worker_count: processes that stand ready.
        limits: what one item may use.
    """

    def __init__(self, factory: Callable[[], Preprocessor], worker_count: int, limits: WorkerLimits) -> None:
        self._workers = [_Worker(factory, limits) for _ in range(worker_count)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue(worker_count)
        self._threads = ThreadPoolExecutor(worker_count, thread_name_prefix="worker-channel")
        self._returning: set[asyncio.Task[None]] = set()
        self._limits = limits
        self.lost_worker_count = 0

    @property
    def worker_count(self) -> int:
        """Processes that stand ready."""
        return len(self._workers)

    async def start(self) -> None:
        """Starts all workers.

        Raises:
            PerceptError: the factory's own, when it fails.
            UnavailableError: a worker died or was silent at its start.
        """
        await asyncio.gather(*(self._in_thread(worker.ensure_alive) for worker in self._workers))
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """Ends all workers, whatever they do."""
        await asyncio.gather(*self._returning)
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._workers))
        self._threads.shutdown()

    async def run(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        """Runs one job in the next free worker.

        A job whose worker dies is tried once more: the death may have been
        another's doing (the kernel's, an operator's). A caller who leaves does
        not stop the worker, which has an end of its own.

        Raises:
            PerceptError: whatever the worker answered.
            BadMediaError: the time was up, or two workers died of the item.
        """
        for _ in range(2):
            try:
                return await self._run_once(job, payload)
            except WorkerLostError:
                self.lost_worker_count += 1
                logger.warning("a worker died with an item")
            except TimeoutError:
                self.lost_worker_count += 1
                logger.warning("a worker was killed at its time limit")
                raise BadMediaError(f"decoding took longer than {self._limits.time_limit_s:g} s") from None
        raise BadMediaError("the decoder crashed on this item")

    async def _run_once(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        worker = await self._idle.get()
        task = asyncio.ensure_future(self._in_thread(worker.call, job, payload))
        try:
            return await asyncio.shield(task)
        finally:
            returning = asyncio.create_task(self._return(worker, task))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    async def _return(self, worker: _Worker, task: asyncio.Future[Features | EncodedItem]) -> None:
        """Puts a worker back when its job is over, with a new process if it needs one."""
        await asyncio.wait([task])
        try:
            await self._in_thread(worker.ensure_alive)
        except Exception:
            # The next job finds it dead, tries again and reports to its caller.
            logger.exception("a worker could not be started again")
        if not task.cancelled():
            # Retrieved, should the caller have left before it.
            task.exception()
        self._idle.put_nowait(worker)

    async def _in_thread(self, function: Callable[..., _R], *arguments: object) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _Worker:
    """One process and our end of its socket. Used by one thread at a time."""

    def __init__(self, factory: Callable[[], Preprocessor], limits: WorkerLimits) -> None:
        self._factory = factory
        self._limits = limits
        self._process: ForkServerProcess | None = None
        self._channel: socket.socket | None = None

    def call(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        """Sends a job and waits for its result.

        Raises:
            TimeoutError: the worker was killed at its limit.
            WorkerLostError: the worker died.
            PerceptError: what the worker answered.
        """
        channel = self.ensure_alive()
        try:
            channel.settimeout(self._limits.time_limit_s)
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
        """Starts the process where there is none, and waits for its preprocessor."""
        if self._channel is not None and self._process is not None and self._process.is_alive():
            return self._channel
        self.end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(_PRELOADED)
            self._process = context.Process(
                target=work, args=(theirs, self._factory, self._limits), daemon=True
            )
            self._process.start()
        self._channel = ours
        self._await_ready(ours)
        return ours

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
