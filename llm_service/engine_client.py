"""The engine process, as its front sees it: started, spoken to, and started again.

Knows the process, the socket and the messages; hands each message to whom it
concerns. Does not know requests or text.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from typing import Protocol

import msgspec

from llm_service.engine.frames import FRAME_HEADER, decode_to_front, encode_frame
from llm_service.engine.messages import (
    AddSequence,
    CancelSequence,
    EmbeddingsClosed,
    EngineReady,
    EngineSettings,
    EngineStatus,
    LoadFailed,
    LoadProgress,
    Ping,
    Pong,
    RowsNeeded,
    RowsUsed,
    SequenceFailed,
    SequenceRefused,
    Shutdown,
    StepReport,
    ToEngine,
    ToFront,
    TokenReport,
)
from llm_service.engine_watch import EngineWatch
from shared.embedding_arena import EmbeddingArena
from shared.errors import OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""Starts in a row without a ready engine, after which the service gives up."""

MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""Bytes that wait for an engine that does not read; beyond it sequences are refused.

The other messages are a few bytes each, and no more than what was admitted causes.
"""

_LONGEST_PAUSE_S = 30.0
_RETRY_AFTER_S = 1.0
_STOP_PATIENCE_S = 10.0


class SequenceListener(Protocol):
    """Whom an engine's news of one sequence concern."""

    def token_came(self, report: TokenReport) -> None: ...

    def rows_needed(self, keys: list[str]) -> None: ...

    def rows_used(self, message: RowsUsed) -> None: ...

    def refused(self, message: SequenceRefused) -> None: ...

    def failed(self, text: str) -> None: ...

    def engine_lost(self) -> None: ...


class RowsListener(Protocol):
    """Who keeps the embedding rows that the engine reads."""

    def closed(self, key: str) -> None: ...

    def engine_started(self) -> None: ...

    def engine_lost(self) -> None: ...


class EngineClient:
    """Keeps one engine process running and talks to it.

    Attributes:
        ready: what the running engine said of itself; None while there is none.
        status: its latest counters.
        start_count: processes started so far.
        changed: called whenever `ready` has changed.
    """

    def __init__(self, settings: EngineSettings, arena: EmbeddingArena, *, step_timeout_s: float) -> None:
        """Args:
        step_timeout_s: an engine at work that says nothing for so long is killed.
        """
        self.ready: EngineReady | None = None
        self.status: EngineStatus | None = None
        self.start_count = 0
        self.changed: Callable[[bool], None] = lambda serving: None
        self._settings = settings
        self._arena = arena
        self._rows: RowsListener | None = None
        self._listeners: dict[int, SequenceListener] = {}
        self._last_sequence_id = 0
        self._writer: asyncio.StreamWriter | None = None
        self._watch = EngineWatch(step_timeout_s, lambda: self.send(Ping()))
        self._stopping = asyncio.Event()
        self._reason = "its log says why"

    def listen(self, rows: RowsListener, changed: Callable[[bool], None]) -> None:
        """Sets who hears of rows, and of the engine's coming and going."""
        self._rows = rows
        self.changed = changed

    def next_sequence_id(self) -> int:
        """Returns an id that no sequence had before."""
        self._last_sequence_id += 1
        return self._last_sequence_id

    def add(self, message: AddSequence, listener: SequenceListener) -> None:
        """Hands a sequence to the engine.

        Raises:
            UnavailableError: there is no engine right now.
            OverloadedError: it does not read what was sent before.
        """
        if self.ready is None or self._writer is None:
            raise UnavailableError("the engine is not ready")
        if self._writer.transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            raise OverloadedError("the engine is far behind", retry_after=_RETRY_AFTER_S)
        self._listeners[message.sequence_id] = listener
        self.send(message)

    def cancel(self, sequence_id: int) -> None:
        """Lets go of a sequence, whether it has ended or not. Its listener hears no more."""
        if self._listeners.pop(sequence_id, None) is not None:
            self.send(CancelSequence(sequence_id))

    def send(self, message: ToEngine) -> None:
        """Sends a message, without waiting; drops it where there is no engine."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def run(self) -> None:
        """Keeps an engine running until `stop`.

        Raises:
            UnavailableError: it cannot be started: not the first time, or not
                several times in a row.
        """
        failed_starts = 0
        while not self._stopping.is_set():
            was_ready = await self._run_once()
            if self._stopping.is_set():
                return
            failed_starts = 0 if was_ready else failed_starts + 1
            if failed_starts == MAX_FAILED_STARTS or (failed_starts and self.start_count == 1):
                raise UnavailableError(f"the engine process cannot be started: {self._reason}")
            pause = min(0.5 * 2**failed_starts, _LONGEST_PAUSE_S)
            logger.error("the engine process ended; starting another in %.1f s", pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    def stop(self) -> None:
        """Tells the engine to end; `run` then returns.

        An engine that still loads reads no messages; it ends when its socket closes.
        """
        self._stopping.set()
        if self.ready is None and self._writer is not None:
            self._writer.transport.abort()
        else:
            self.send(Shutdown())

    async def _run_once(self) -> bool:
        """Runs one process to its end. Returns whether it was ever ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            process = await self._spawn(theirs.fileno())
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        was_ready = False
        watching = asyncio.create_task(self._end_if_stuck(process), name="watch the engine")
        try:
            while (message := await _read(reader)) is not None:
                self._watch.heard()
                was_ready = was_ready or isinstance(message, EngineReady)
                self._take(message)
        finally:
            watching.cancel()
            self._lose()
            await _end(process)
        return was_ready

    async def _end_if_stuck(self, process: asyncio.subprocess.Process) -> None:
        """Kills a process whose step does not return; what follows is the same as after a crash."""
        await self._watch.until_silent(lambda: self.ready is not None and bool(self._listeners))
        logger.error(
            "the engine process %d has said nothing for %g s; ending it", process.pid, self._watch.timeout_s
        )
        process.kill()
        # A process that hangs in a driver does not even die: stop listening to it all the same.
        if self._writer is not None:
            self._writer.transport.abort()

    async def _spawn(self, socket_fd: int) -> asyncio.subprocess.Process:
        self.start_count += 1
        arguments = [
            *("--socket", str(socket_fd)),
            *("--arena", str(self._arena.fd)),
            *("--arena-bytes", str(self._arena.byte_count)),
            *("--settings", msgspec.json.encode(self._settings).decode()),
        ]
        # Its own session: a Ctrl-C in the terminal is for the front, which drains first.
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llm_service.engine_process",
            *arguments,
            pass_fds=(socket_fd, self._arena.fd),
            start_new_session=True,
        )

    def _take(self, message: ToFront) -> None:
        assert self._rows is not None
        match message:
            case StepReport():
                self._take_step(message)
            case RowsNeeded(sequence_id, keys):
                self._tell(sequence_id, lambda listener: listener.rows_needed(keys))
            case EmbeddingsClosed(key):
                self._rows.closed(key)
            case SequenceRefused(sequence_id):
                self._tell(sequence_id, lambda listener: listener.refused(message))
                self._listeners.pop(sequence_id, None)
            case SequenceFailed(sequence_id, text):
                self._tell(sequence_id, lambda listener: listener.failed(text))
                self._listeners.pop(sequence_id, None)
            case LoadProgress(fraction, text):
                logger.info("loading language model %d %%: %s", round(100 * fraction), text)
            case LoadFailed(text):
                self._reason = text
            case EngineReady():
                self._take_ready(message)
            case Pong():
                pass  # Any message is a sign of life; this one says no more.

    def _take_step(self, report: StepReport) -> None:
        self.status = report.status
        for used in report.used:
            self._tell(used.sequence_id, methodcaller("rows_used", used))
        # What has ended is let go of first: nobody need be told to cancel it.
        last = {sequence_id: self._listeners.pop(sequence_id, None) for sequence_id in report.ended}
        for token in report.tokens:
            listener = last.get(token.sequence_id) or self._listeners.get(token.sequence_id)
            if listener is not None:
                self._tell_listener(token.sequence_id, listener, methodcaller("token_came", token))

    def _tell(self, sequence_id: int, news: Callable[[SequenceListener], None]) -> None:
        """Tells whoever listens to a sequence."""
        if (listener := self._listeners.get(sequence_id)) is not None:
            self._tell_listener(sequence_id, listener, news)

    def _tell_listener(
        self, sequence_id: int, listener: SequenceListener, news: Callable[[SequenceListener], None]
    ) -> None:
        """Tells a listener. A bug there ends that sequence alone."""
        try:
            news(listener)
        except Exception:
            logger.exception("sequence %d: the front failed on the engine's news", sequence_id)
            self.cancel(sequence_id)
            listener.failed("the front failed on the engine's news")

    def _take_ready(self, message: EngineReady) -> None:
        assert self._rows is not None
        self.ready = message
        self._rows.engine_started()
        logger.info(
            "engine ready: %d blocks of %d slots, sequences of up to %d tokens",
            message.block_count,
            message.block_size,
            message.max_model_len,
        )
        self.changed(True)

    def _lose(self) -> None:
        """The process is gone: tells everybody who waited for it."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self.ready = self.status = None
        self.changed(False)
        lost, self._listeners = list(self._listeners.values()), {}
        for listener in lost:
            listener.engine_lost()
        if self._rows is not None:
            self._rows.engine_lost()


async def _read(reader: asyncio.StreamReader) -> ToFront | None:
    """Reads one message, or None at the stream's end."""
    try:
        (length,) = FRAME_HEADER.unpack(await reader.readexactly(FRAME_HEADER.size))
        return decode_to_front(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Waits for the process's end, and makes sure of it."""
    try:
        async with asyncio.timeout(_STOP_PATIENCE_S):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
    if code != 0:
        logger.error("the engine process ended with code %d", code)
