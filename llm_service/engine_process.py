"""The engine as a process of its own: the front starts it, and it dies with the front.

    python -m llm_service.engine_process --socket FD --arena FD --arena-bytes N --settings JSON

Knows the socket, the arena and the order of starting: load, warm up, say
`EngineReady`, then step. An idle engine sleeps on the socket.

When the socket closes, the front is gone and so is the purpose: a thread sees it
and ends the process at once, even in the middle of loading or of a step, as it
owns nothing that must be tidied up.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import NoReturn, Protocol

import msgspec

from llm_service.engine.batch import Runner
from llm_service.engine.counters import resident_byte_count
from llm_service.engine.engine import Engine
from llm_service.engine.frames import encode_frame
from llm_service.engine.messages import (
    EngineReady,
    EngineSettings,
    LoadFailed,
    LoadProgress,
    Shutdown,
    ToFront,
)
from llm_service.engine_inbox import EngineInbox, FrontGoneError
from shared.build_faults import faults_of
from shared.collection import keep_loaded
from shared.embedding_arena import EmbeddingArena
from shared.errors import InvalidRequestError, PerceptError
from shared.kernels.build import build_early
from shared.telemetry import configure_logging

IDLE_S = 1.0
"""A pause of this length, in seconds, is used to check the engine's books, once."""

logger = logging.getLogger(__name__)


class LoadedRunner(Runner, Protocol):
    """A runner with its model and KV cache in memory.

    Attributes:
        block_count: blocks of the KV pool.
        context_length: positions that the checkpoint was configured for.
        max_held: most sequences that may hold blocks at a time; None: any number.
        shares_prefixes: sequences may share blocks of equal content.
        switch_length: tokens beyond which a sequence must be computed anew, or None.
    """

    block_count: int
    context_length: int
    max_held: int | None
    shares_prefixes: bool
    switch_length: int | None

    def warm_up(self) -> None:
        """Runs the slow first steps before anybody waits for them."""
        ...


LoadRunner = Callable[[EngineSettings, Callable[[float, str], None]], LoadedRunner]


class EngineProcess:
    """The engine at its end of the socket."""

    def __init__(self, connection: socket.socket, arena: EmbeddingArena, settings: EngineSettings) -> None:
        self._connection = connection
        self._arena = arena
        self._settings = settings
        self._inbox = EngineInbox(connection)

    def run(self, load_runner: LoadRunner) -> None:
        """Loads, then steps until `Shutdown` comes."""
        threading.Thread(target=self._end_with_front, name="front-watch", daemon=True).start()
        engine = self._start(load_runner)
        while self._receive(engine):
            # Rows are asked for before the step, so that encoders work while it runs.
            self._send(engine.take_messages())
            engine.step()
            self._send(engine.take_messages())

    def _start(self, load_runner: LoadRunner) -> Engine:
        try:
            with faults_of(self._settings.model, "language model"):
                runner = load_runner(self._settings, self._report_progress)
                _check_length(self._settings.max_model_len, runner.context_length)
                runner.warm_up()
        except PerceptError as error:
            # The front says it, in one line.
            self._send([LoadFailed(error.message)])
            end_process(1)
        engine = self._build_engine(runner)
        keep_loaded()
        ready = EngineReady(
            block_count=runner.block_count,
            block_size=self._settings.block_size,
            max_model_len=engine.max_model_len,
            resident_byte_count=resident_byte_count(),
        )
        self._send([ready])
        return engine

    def _build_engine(self, runner: LoadedRunner) -> Engine:
        settings = self._settings
        return Engine(
            runner,
            self._arena,
            block_count=runner.block_count,
            block_size=settings.block_size,
            max_model_len=settings.max_model_len or runner.context_length,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_held=runner.max_held,
            enable_prefix_caching=settings.enable_prefix_caching and runner.shares_prefixes,
            rests_for_encoders=settings.shared_cores is not None,
            switch_length=runner.switch_length,
        )

    def _receive(self, engine: Engine) -> bool:
        """Hands all that has come to the engine, waiting if it has nothing to do; False at the end."""
        if not engine.busy:
            self._await_message(engine)
        elif engine.rest_s > 0:
            # Leaves the cores to others for a while, unless a message comes.
            self._inbox.wait(engine.rest_s)
        try:
            for message in self._inbox.take():
                if isinstance(message, Shutdown):
                    return False
                engine.receive(message)
        except FrontGoneError:
            end_process(0)
        except (OSError, msgspec.MsgspecError):
            logger.exception("the front cannot be understood")
            end_process(1)
        return True

    def _await_message(self, engine: Engine) -> None:
        """Sleeps until a message is there; a pause is the time to check the books."""
        if not self._inbox.wait(IDLE_S):
            engine.check_integrity()
            self._inbox.wait()

    def _end_with_front(self) -> None:
        self._inbox.wait_for_hangup()
        end_process(0)

    def _send(self, messages: list[ToFront]) -> None:
        if not messages:
            return
        try:
            self._connection.sendall(b"".join(encode_frame(message) for message in messages))
        except OSError:
            end_process(0)

    def _report_progress(self, fraction: float, text: str) -> None:
        self._send([LoadProgress(fraction, text)])


def _check_length(max_model_len: int | None, context_length: int) -> None:
    if max_model_len is not None and max_model_len > context_length:
        raise InvalidRequestError(
            f"--max-model-len {max_model_len}, but the checkpoint was made for {context_length} tokens"
        )


def end_process(code: int) -> NoReturn:
    """Ends this process now, from any thread."""
    logging.shutdown()
    os._exit(code)


def main() -> None:
    """Runs the engine as the front has started it."""
    arguments = _arguments()
    settings = msgspec.json.decode(arguments.settings, type=EngineSettings)
    configure_logging("engine", settings.log_level)
    # Ctrl-C reaches every process of a terminal; the front alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=arguments.socket)
    arena = EmbeddingArena.open(arguments.arena, arguments.arena_bytes)
    process = EngineProcess(connection, arena, settings)
    try:
        # The import takes seconds, and the front's end must be noticed meanwhile.
        process.run(_load_runner)
    except Exception:
        logger.exception("the engine has failed")
        end_process(1)
    end_process(0)


def _load_runner(settings: EngineSettings, progress: Callable[[float, str], None]) -> LoadedRunner:
    if settings.kernels == "auto" and settings.device in ("auto", "cpu"):
        build_early()
    from llm_service.runner.load import load_runner

    return load_runner(settings, progress)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llm_service.engine_process", description="The LLM engine.")
    parser.add_argument("--socket", type=int, required=True, help="inherited end of a socket pair")
    parser.add_argument("--arena", type=int, required=True, help="inherited memory file of embedding rows")
    parser.add_argument("--arena-bytes", type=int, required=True, help="virtual size of the arena")
    parser.add_argument("--settings", required=True, help="EngineSettings as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
