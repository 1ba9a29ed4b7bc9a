"""Recordings cut by the running encoder service: pieces that are items, and what is refused."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
import pytest_asyncio
import soundfile

from encoder_service.service import running
from encoder_service.settings import EncoderSettings
from protos.encoder.v1 import encoder_service_pb2 as pb
from protos.encoder.v1 import encoder_service_pb2_grpc
from shared.encode_call import RecordingPiece, split
from shared.errors import (
    BadMediaError,
    InvalidRequestError,
    MediaTooLargeError,
    PerceptError,
    UnknownModelError,
    UnsupportedMediaError,
)
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error
from tests.asking import sound, wave_file
from tests.integration.test_encoder_recordings import encode_sound
from tests.integration.test_encoder_service import status
from tests.unit.encoder_service.sounds import written

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub as Stub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

RATE = 16_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stub(tiny_checkpoint: Callable[[str], Path]) -> AsyncIterator[Stub]:
    settings = EncoderSettings(
        model=str(tiny_checkpoint("qwen2_audio")),
        served_model_name=("tiny",),
        listen="127.0.0.1:0",
        workers=2,
        max_payload_mib=4,
        max_audio_seconds=40,
        drain_grace_s=1,
    )
    async with running(settings) as (_, port), open_channel(f"127.0.0.1:{port}") as channel:
        yield encoder_service_pb2_grpc.EncoderServiceStub(channel)


async def split_sound(stub: Stub, payload: bytes, taken: list[int] | None = None) -> list[RecordingPiece]:
    call = stub.SplitAudio(timeout=30)
    counts = [] if taken is None else taken
    try:
        return await split(call, payload, counts.append)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, "the encoder service") from None


async def test_pieces_are_the_whole_and_each_is_an_item(stub: Stub) -> None:
    samples = sound(1, 13.0)
    taken: list[int] = []
    pieces = await split_sound(stub, wave_file(samples, RATE), taken)
    assert len(pieces) > 3 and taken == [sum(len(piece.payload) for piece in pieces)]
    read = [soundfile.read(io.BytesIO(piece.payload), dtype="float32")[0] for piece in pieces]
    np.testing.assert_array_equal(np.concatenate(read), samples)
    ends = [0.0, *(piece.end_s for piece in pieces)]
    assert [piece.start_s for piece in pieces] == ends[:-1] and ends[-1] == 13.0
    for piece, data in zip(pieces, read, strict=True):
        assert piece.end_s - piece.start_s == pytest.approx(len(data) / RATE)
        assert len((await encode_sound(stub, piece.payload)).rows()) > 0


async def test_a_short_recording_is_its_own_piece(stub: Stub) -> None:
    payload = written(np.repeat(sound(2, 3.0, 48_000)[:, None], 2, axis=1).astype(np.float64), 48_000, "flac")
    (piece,) = await split_sound(stub, payload)
    assert (piece.start_s, piece.end_s, piece.payload) == (0.0, 3.0, payload)


async def test_many_at_once(stub: Stub) -> None:
    payloads = [wave_file(sound(seed, 2.0 + 3 * (seed % 4)), RATE) for seed in range(12)]
    found = await asyncio.gather(*(split_sound(stub, payload) for payload in payloads))
    for payload, pieces in zip(payloads, found, strict=True):
        assert pieces == await split_sound(stub, payload)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: b"this is a text", BadMediaError, "no audio"),
        (lambda: b"\x89PNG\r\n\x1a\n", UnsupportedMediaError, "PNG"),
        (lambda: written(np.zeros((400_000, 1)), 8_000, "flac"), MediaTooLargeError, "longer than 40 s"),
        (lambda: bytes(5 * 1024 * 1024), MediaTooLargeError, "4194304"),
        (lambda: b"", InvalidRequestError, "at least 1"),
    ],
)
async def test_what_is_wrong_is_refused_and_the_next_is_cut(
    stub: Stub, make: Callable[[], bytes], kind: type[PerceptError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        await split_sound(stub, make())
    assert len(await split_sound(stub, wave_file(sound(3, 5.0), RATE))) == 2


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([], InvalidRequestError),
        ([pb.SplitAudioRequest(chunk=b"abc")], InvalidRequestError),
        ([pb.SplitAudioRequest(header=pb.SplitAudioHeader(byte_count=3, model="no"))], UnknownModelError),
        (
            [
                pb.SplitAudioRequest(header=pb.SplitAudioHeader(byte_count=5, model="tiny")),
                pb.SplitAudioRequest(chunk=b"abc"),
            ],
            InvalidRequestError,
        ),
    ],
    ids=["nothing", "no header", "another model", "too few bytes"],
)
async def test_frames_out_of_order(
    stub: Stub, frames: list[pb.SplitAudioRequest], kind: type[PerceptError]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.SplitAudio(iter(frames), timeout=10):
            pass
    assert type(from_rpc_error(caught.value, "the encoder service")) is kind


@pytest.mark.parametrize("frame_count", [0, 1, 2])
async def test_a_call_that_ends_early_gives_no_pieces(frame_count: int) -> None:
    pieces = [pb.AudioPiece(end_seconds=1, byte_count=4), pb.AudioPiece(start_seconds=1, byte_count=4)]
    frames = [
        pb.SplitAudioResponse(pieces=pb.AudioPieces(seconds=2, pieces=pieces)),
        pb.SplitAudioResponse(chunk=b"abcd"),
    ]

    class Ending(encoder_service_pb2_grpc.EncoderServiceServicer):
        async def SplitAudio(
            self, request_iterator: AsyncIterator[pb.SplitAudioRequest], context: object
        ) -> AsyncIterator[pb.SplitAudioResponse]:
            await anext(aiter(request_iterator))
            yield pb.SplitAudioResponse(accepted=pb.Accepted(payload_wanted=True))
            async for _ in request_iterator:
                pass
            for frame in frames[:frame_count]:
                yield frame

    server = grpc.aio.server()
    encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(Ending(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            assert await split_sound(encoder_service_pb2_grpc.EncoderServiceStub(channel), b"a") == []
    finally:
        await server.stop(None)


async def test_a_caller_that_leaves_holds_nothing(stub: Stub) -> None:
    call = stub.SplitAudio(timeout=30)
    await call.write(pb.SplitAudioRequest(header=pb.SplitAudioHeader(byte_count=100)))
    await call.read()
    assert (await status(stub)).pending_item_count == 1
    call.cancel()
    async with asyncio.timeout(5):
        while (await status(stub)).pending_item_count:
            await asyncio.sleep(0.01)
    assert (await status(stub)).lost_worker_count == 0
