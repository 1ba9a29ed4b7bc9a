"""The engine's client, where the engine does not read."""

from __future__ import annotations

import asyncio
import socket

import pytest

from llm_service.engine.frames import FrameBuffer, decode_to_engine
from llm_service.engine.messages import (
    AddSequence,
    CancelSequence,
    EngineReady,
    EngineSettings,
    EngineStatus,
    SamplingSettings,
    StepReport,
    StoppingSettings,
    TokenReport,
)
from llm_service.engine_client import MAX_BACKLOG_BYTES, EngineClient
from shared.embedding_arena import EmbeddingArena
from shared.errors import OverloadedError

PROMPT_BYTES = 16 << 20


STATUS = EngineStatus(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0.0, 0)


class Rows:
    """A store that has no rows."""

    def closed(self, key: str) -> None: ...

    def engine_started(self) -> None: ...

    def engine_lost(self) -> None: ...


class Deaf:
    """A listener to whom nothing is told."""

    def token_came(self, report: object) -> None: ...

    def rows_needed(self, keys: object) -> None: ...

    def rows_used(self, message: object) -> None: ...

    def refused(self, message: object) -> None: ...

    def failed(self, text: str) -> None: ...

    def engine_lost(self) -> None: ...


async def test_an_engine_that_does_not_read_gets_no_endless_backlog() -> None:
    arena = EmbeddingArena.create(1 << 20)
    client = EngineClient(EngineSettings("anywhere"), arena, step_timeout_s=300)
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    client._writer = writer
    client.ready = EngineReady(block_count=1, block_size=1, max_model_len=1, resident_byte_count=1)
    accepted = 0
    try:
        with pytest.raises(OverloadedError, match="far behind"):
            for sequence_id in range(1, 20):
                client.add(_prompt(sequence_id), Deaf())
                accepted += 1
        assert MAX_BACKLOG_BYTES < accepted * PROMPT_BYTES <= MAX_BACKLOG_BYTES + 2 * PROMPT_BYTES
        client.cancel(1)
    finally:
        writer.transport.abort()
        theirs.close()
        arena.close()


class Canceller(Deaf):
    """A listener that lets go of its sequence as soon as a token comes, as a complete choice does."""

    def __init__(self, client: EngineClient, sequence_id: int) -> None:
        self.told: list[object] = []
        self._client = client
        self._sequence_id = sequence_id

    def token_came(self, report: object) -> None:
        self.told.append(report)
        self._client.cancel(self._sequence_id)


async def test_what_the_engine_has_ended_is_not_cancelled_once_more() -> None:
    arena = EmbeddingArena.create(1 << 20)
    client = EngineClient(EngineSettings("anywhere"), arena, step_timeout_s=300)
    client.listen(Rows(), lambda serving: None)
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    client._writer = writer
    client.ready = EngineReady(block_count=1, block_size=1, max_model_len=1, resident_byte_count=1)
    try:
        listeners = {sequence_id: Canceller(client, sequence_id) for sequence_id in (1, 2)}
        for sequence_id, listener in listeners.items():
            client.add(_prompt(sequence_id, 4), listener)
        tokens = [TokenReport(1, 7, finish="length"), TokenReport(2, 8)]
        client._take(StepReport(tokens, ended=[1], used=[], status=STATUS))
        assert [listener.told for listener in listeners.values()] == [[tokens[0]], [tokens[1]]]
        client._take(StepReport([TokenReport(2, 9)], ended=[], used=[], status=STATUS))
        assert listeners[2].told == [tokens[1]], "a listener that has let go hears no more"
        bodies = list(FrameBuffer().feed(theirs.recv(1 << 20)))
        assert [decode_to_engine(body) for body in bodies[2:]] == [CancelSequence(2)]
    finally:
        writer.transport.abort()
        theirs.close()
        arena.close()


def _prompt(sequence_id: int, byte_count: int = PROMPT_BYTES) -> AddSequence:
    return AddSequence(
        sequence_id=sequence_id,
        token_ids=bytes(byte_count),
        positions=b"",
        axes=1,
        next_position=0,
        spans=[],
        sampling=SamplingSettings(),
        stopping=StoppingSettings(max_token_count=1),
        arrival=0.0,
    )
