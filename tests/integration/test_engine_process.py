"""The engine as a process: it loads, answers over the socket, and dies with its front."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from llm_service.engine.frames import FRAME_HEADER, decode_to_front, encode_frame
from llm_service.engine.messages import (
    CancelSequence,
    EngineReady,
    LoadFailed,
    LoadProgress,
    Shutdown,
    ToEngine,
    ToFront,
)
from shared.embedding_arena import EmbeddingArena
from tests.checkpoints import build_tiny
from tests.integration.engine_front import ARENA_BYTES, EngineFront, draw_picture, settings_for
from tests.reference import ReferenceModel

KEY = "5" * 64
DEADLINE_S = 60.0


class Connection:
    """The front's end of the socket, read with a deadline."""

    def __init__(self, end: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.end = end
        self.process = process
        self._buffer = b""

    def send(self, message: ToEngine) -> None:
        self.end.sendall(encode_frame(message))

    def receive(self) -> ToFront:
        """The next message."""
        while (body := self._take_body()) is None:
            readable, _, _ = select.select([self.end], [], [], DEADLINE_S)
            assert readable, "the engine says nothing"
            data = self.end.recv(1 << 16)
            assert data, "the engine has closed its end"
            self._buffer += data
        return decode_to_front(body)

    def _take_body(self) -> bytes | None:
        if len(self._buffer) < FRAME_HEADER.size:
            return None
        end = FRAME_HEADER.size + FRAME_HEADER.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[FRAME_HEADER.size : end], self._buffer[end:]
        return body


@contextmanager
def running_engine(folder: Path, arena: EmbeddingArena, **changes: object) -> Iterator[Connection]:
    """Starts the process as the front does, and ends it whatever happens."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "llm_service.engine_process"]
    command += ["--socket", str(theirs.fileno()), "--arena", str(arena.fd)]
    command += ["--arena-bytes", str(arena.byte_count)]
    command += ["--settings", msgspec.json.encode(settings_for(folder, **changes)).decode()]
    process = subprocess.Popen(command, pass_fds=(theirs.fileno(), arena.fd))
    theirs.close()
    try:
        yield Connection(ours, process)
    finally:
        ours.close()
        process.kill()
        process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_vl", tmp_path_factory.mktemp("engine"))


def test_it_loads_answers_rests_and_dies_with_its_front(folder: Path) -> None:
    arena = EmbeddingArena.create(ARENA_BYTES)
    with running_engine(folder, arena) as connection:
        front = EngineFront(folder, arena, connection.send)
        front.encode(KEY, draw_picture(5))
        ready = _until_ready(connection)
        assert ready.max_model_len == 512 and ready.block_size == 4 and ready.block_count > 128
        assert ready.resident_byte_count > 50 << 20

        reference = ReferenceModel(folder)
        prompt = reference.chat(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        )
        ids = [front.add(prompt, [KEY]), front.add(reference.chat([{"role": "user", "content": "Hello"}]))]
        _serve(connection, front, ids)
        assert front.token_ids(ids[0]) == reference.generate(prompt, [draw_picture(5)], 16, eos_token_id=None)
        assert front.last_report is not None and front.last_report.status.used_block_count == 0

        assert _cpu_seconds_while_idle(connection.process.pid, 1.5) < 0.1

        long = front.add(prompt, [KEY], max_token_count=400)
        connection.send(CancelSequence(long))
        _serve(connection, front, [long])
        assert len(front.token_ids(long)) < 400

        connection.end.close()
        assert connection.process.wait(5.0) == 0


def test_shutdown_ends_it(folder: Path) -> None:
    arena = EmbeddingArena.create(ARENA_BYTES)
    with running_engine(folder, arena) as connection:
        _until_ready(connection)
        connection.send(Shutdown())
        assert connection.process.wait(5.0) == 0


def test_it_dies_while_loading_when_its_front_does(folder: Path) -> None:
    arena = EmbeddingArena.create(ARENA_BYTES)
    with running_engine(folder, arena) as connection:
        assert isinstance(connection.receive(), LoadProgress)
        connection.end.close()
        assert connection.process.wait(5.0) == 0


def test_a_checkpoint_that_is_none_ends_it_with_an_error(tmp_path: Path) -> None:
    arena = EmbeddingArena.create(ARENA_BYTES)
    with running_engine(tmp_path, arena) as connection:
        assert connection.process.wait(DEADLINE_S) == 1


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [({"max_model_len": 10**6}, "max-model-len"), ({"kv_cache_gib": 1e-6}, "kv-cache-gib")],
)
def test_a_setting_that_cannot_be_is_named(folder: Path, changes: dict[str, object], blamed: str) -> None:
    arena = EmbeddingArena.create(ARENA_BYTES)
    with running_engine(folder, arena, **changes) as connection:
        while isinstance(message := connection.receive(), LoadProgress):
            continue
        assert isinstance(message, LoadFailed) and blamed in message.text
        assert connection.process.wait(5.0) == 1


def _until_ready(connection: Connection) -> EngineReady:
    fractions = []
    while isinstance(message := connection.receive(), LoadProgress):
        fractions.append(message.fraction)
    assert isinstance(message, EngineReady)
    assert fractions and fractions == sorted(fractions)
    return message


def _serve(connection: Connection, front: EngineFront, sequence_ids: list[int]) -> None:
    while not front.ended.issuperset(sequence_ids):
        front.take([connection.receive()])


def _cpu_seconds_while_idle(process_id: int, seconds: float) -> float:
    before = _cpu_seconds(process_id)
    time.sleep(seconds)
    return _cpu_seconds(process_id) - before


def _cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
