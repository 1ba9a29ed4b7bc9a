"""The pool of worker processes.

Knows that a worker may hang, crash or be killed, and that this must cost one item
at most. Does not know what workers do. A pool of its own rather than a library's:
each worker has its own socket, so that one that dies holds no lock and leaves no
half message to the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from encoder_service.media import messages
from encoder_service.media.worker import WorkerLimits
from encoder_service.media.worker_process import WorkerLostError, WorkerProcess
from shared.errors import BadMediaError, UnavailableError
from shared.families.base import EncodedItem, Features, Preprocessor

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

_UNWANTED_LIMIT_S = 0.5
"""Time that a job gets to end after its caller left: about what a new worker costs (0.35 s measured)."""


class WorkerPool:
    """Runs jobs in worker processes, one each at a time.

    Args:
        factory: makes the preprocessor, once in each worker. Travels to the
            workers by pickle, so it is a module's function or a partial of one.
        worker_count: processes that stand ready.
        limits: what one item may use.
    """

    def __init__(self, factory: Callable[[], Preprocessor], worker_count: int, limits: WorkerLimits) -> None:
        self._workers = [WorkerProcess(factory, limits) for _ in range(worker_count)]
        self._idle: asyncio.LifoQueue[WorkerProcess] = asyncio.LifoQueue(worker_count)
        self._threads = ThreadPoolExecutor(worker_count, thread_name_prefix="worker-channel")
        self._returning: set[asyncio.Task[None]] = set()
        self._limits = limits
        self._closed = False
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
        """Ends all workers at once, whatever they do. Who waits for one gets UnavailableError."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        # Threads see their workers' ends; only then nobody but us uses the workers.
        await asyncio.gather(*self._returning)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._workers))

    async def run(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        """Runs one job in the next free worker.

        A job whose worker dies is tried once more: the death may have been
        another's doing (the kernel's, an operator's). When the caller leaves, a
        worker that is not done half a second later is ended too: nobody may hold one
        with a costly item and no interest in it.

        Raises:
            PerceptError: whatever the worker answered.
            UnavailableError: the pool is closed.
            BadMediaError: the time was up, or two workers died of the item.
        """
        for _ in range(2):
            try:
                return await self._run_once(job, payload)
            except WorkerLostError:
                self._check_open()
                self.lost_worker_count += 1
                logger.warning("a worker died with an item")
            except TimeoutError:
                self.lost_worker_count += 1
                logger.warning("a worker was killed at its time limit")
                seconds = self._limits.seconds_for(job.modality)
                raise BadMediaError(f"decoding took longer than {seconds:g} s") from None
        raise BadMediaError("the decoder crashed on this item")

    async def _run_once(self, job: messages.Job, payload: bytes) -> Features | EncodedItem:
        worker = await self._idle.get()
        if self._closed:
            # For the next one who waits, and is to learn it too.
            self._idle.put_nowait(worker)
            self._check_open()
        task = asyncio.ensure_future(self._in_thread(worker.call, job, payload))
        try:
            return await asyncio.shield(task)
        finally:
            # Not done here: the caller has left.
            returning = asyncio.create_task(self._return(worker, task))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the encoder service is shutting down")

    async def _return(self, worker: WorkerProcess, task: asyncio.Future[Features | EncodedItem]) -> None:
        """Puts a worker back when its job is over, with a new process if it needs one."""
        await asyncio.wait([task], timeout=_UNWANTED_LIMIT_S)
        if not task.done():
            worker.kill()
            await asyncio.wait([task])
        if not task.cancelled():
            # Retrieved, should the caller have left before it.
            task.exception()
        if not self._closed:
            await self._made_ready(worker)
        self._idle.put_nowait(worker)

    async def _made_ready(self, worker: WorkerProcess) -> None:
        try:
            await self._in_thread(worker.recover)
        except Exception:
            if not self._closed:
                # The next job finds it dead, tries again and reports to its caller.
                logger.exception("a worker could not be started again")

    async def _in_thread(self, function: Callable[..., _R], *arguments: object) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
