"""The engine's client, where the engine does not read."""

from __future__ import annotations

import asyncio
import socket

import pytest

from llm_service.embedding_arena import EmbeddingArena
from llm_service.engine.messages import (
    AddSequence,
    EngineReady,
    EngineSettings,
    SamplingSettings,
    StoppingSettings,
)
from llm_service.engine_client import MAX_BACKLOG_BYTES, EngineClient
from shared.errors import OverloadedError

PROMPT_BYTES = 16 << 20


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


def _prompt(sequence_id: int) -> AddSequence:
    return AddSequence(
        sequence_id=sequence_id,
        token_ids=bytes(PROMPT_BYTES),
        positions=b"",
        axes=1,
        next_position=0,
        spans=[],
        sampling=SamplingSettings(),
        stopping=StoppingSettings(max_token_count=1),
        arrival=0.0,
    )
