"""Messages survive the way through the socket."""

from __future__ import annotations

import pytest

from llm_service.engine.frames import FrameBuffer, decode_to_engine, decode_to_front, encode_frame
from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    CancelSequence,
    CloseEmbeddings,
    EmbeddingRowsReady,
    EmbeddingsClosed,
    EngineReady,
    EngineStatus,
    LoadFailed,
    LoadProgress,
    OpenEmbeddings,
    PrefillReport,
    RowsNeeded,
    RowsUsed,
    SamplingSettings,
    SequenceFailed,
    SequenceRefused,
    Shutdown,
    SpanMessage,
    StepReport,
    StoppingSettings,
    ToEngine,
    ToFront,
    TokenReport,
)

SAMPLING = SamplingSettings(temperature=0.5, seed=3, logit_bias={7: -1.5}, top_logprobs=2)
STATUS = EngineStatus(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.5, 12)
TOKEN = TokenReport(1, 2, "stop", 2, -0.5, [(2, -0.5)], PrefillReport(3, 0.25, 0.5))

TO_ENGINE: list[ToEngine] = [
    AddSequence(
        1, b"\1\0\0\0", b"\0\0\0\0", 1, 1, [SpanMessage("k", 0, 1)], SAMPLING, StoppingSettings(5), 0.5
    ),
    OpenEmbeddings("k", [ArenaTensor("embeds", "bfloat16", (3, 8), 4096)]),
    EmbeddingRowsReady("k", 3),
    CloseEmbeddings("k"),
    CancelSequence(1),
    Shutdown(),
]
TO_FRONT: list[ToFront] = [
    LoadProgress(0.5, "loading"),
    LoadFailed("no such model"),
    EngineReady(10, 16, 160, 1 << 30),
    StepReport([TOKEN], [1], [RowsUsed(1, "k")], STATUS),
    RowsNeeded(1, ["k"]),
    EmbeddingsClosed("k"),
    SequenceRefused(1, "context_length", "too long"),
    SequenceFailed(1, "a bug"),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda message: type(message).__name__)
def test_to_the_engine_and_back(message: ToEngine) -> None:
    (body,) = FrameBuffer().feed(encode_frame(message))
    assert decode_to_engine(body) == message


@pytest.mark.parametrize("message", TO_FRONT, ids=lambda message: type(message).__name__)
def test_to_the_front_and_back(message: ToFront) -> None:
    (body,) = FrameBuffer().feed(encode_frame(message))
    assert decode_to_front(body) == message


@pytest.mark.parametrize("piece_length", [1, 3, 4, 5, 7, 1000])
def test_frames_come_whole_however_the_stream_is_cut(piece_length: int) -> None:
    messages: list[ToEngine] = [Shutdown(), CancelSequence(4), *TO_ENGINE, CancelSequence(5)]
    stream = b"".join(encode_frame(message) for message in messages)
    buffer = FrameBuffer()
    read = [
        decode_to_engine(body)
        for start in range(0, len(stream), piece_length)
        for body in buffer.feed(stream[start : start + piece_length])
    ]
    assert read == messages


def test_a_reader_that_stops_early_loses_no_frame() -> None:
    buffer = FrameBuffer()
    first = next(iter(buffer.feed(encode_frame(CancelSequence(1)) + encode_frame(CancelSequence(2)))))
    (second,) = buffer.feed(b"")
    assert [decode_to_engine(body) for body in (first, second)] == [CancelSequence(1), CancelSequence(2)]
