"""The caller's side of `Encode` and `SplitAudio`: header, `accepted`, payload, then what comes back.

Knows the order of the frames. Does not know which service is called nor why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from protos.encoder.v1 import encoder_service_pb2

CHUNK_BYTE_COUNT = 512 * 1024
"""Bytes of a payload in one frame."""

EncodeCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[encoder_service_pb2.EncodeRequest, encoder_service_pb2.EncodeResponse]"
)


SplitCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[encoder_service_pb2.SplitAudioRequest, encoder_service_pb2.SplitAudioResponse]"
)


@dataclass(frozen=True, slots=True)
class RecordingPiece:
    """A piece of a recording, an item of its own.

    Attributes:
        start_s, end_s: where it is in the recording, in seconds.
        payload: a file; the recording itself where it was not cut.
    """

    start_s: float
    end_s: float
    payload: bytes


async def converse(
    call: EncodeCall, header: encoder_service_pb2.EncodeHeader, payload: bytes
) -> AsyncIterator[encoder_service_pb2.EncodeResponse]:
    """Sends header and payload; yields what follows `accepted`.

    Raises:
        grpc.aio.AioRpcError: the call's status.
    """
    Request = encoder_service_pb2.EncodeRequest
    await _written(call, call.write(Request(header=header)))
    first = await call.read()
    if isinstance(first, encoder_service_pb2.EncodeResponse) and first.accepted.payload_wanted:
        for start in range(0, len(payload), CHUNK_BYTE_COUNT):
            await _written(call, call.write(Request(chunk=payload[start : start + CHUNK_BYTE_COUNT])))
    await _close(call)
    while isinstance(frame := await call.read(), encoder_service_pb2.EncodeResponse):
        yield frame


async def split(call: SplitCall, payload: bytes, take: Callable[[int], None]) -> list[RecordingPiece]:
    """Sends a recording and returns its pieces, in order; none where the call ended too early.

    Args:
        take: told of the bytes that are about to come back.

    Raises:
        grpc.aio.AioRpcError: the call's status.
        PerceptError: what `take` raises.
    """
    Request = encoder_service_pb2.SplitAudioRequest
    header = encoder_service_pb2.SplitAudioHeader(byte_count=len(payload))
    await _written(call, call.write(Request(header=header)))
    first = await call.read()
    if isinstance(first, encoder_service_pb2.SplitAudioResponse):
        for start in range(0, len(payload), CHUNK_BYTE_COUNT):
            await _written(call, call.write(Request(chunk=payload[start : start + CHUNK_BYTE_COUNT])))
    await _close(call)
    layout: list[encoder_service_pb2.AudioPiece] = []
    files: list[bytearray] = []
    while isinstance(frame := await call.read(), encoder_service_pb2.SplitAudioResponse):
        if frame.HasField("pieces"):
            layout = list(frame.pieces.pieces)
            take(sum(piece.byte_count for piece in layout))
            files = [bytearray()]
            continue
        files[-1] += frame.chunk
        if len(files[-1]) == layout[len(files) - 1].byte_count:
            files.append(bytearray())
    if not layout or len(files) < len(layout) or (len(files) == len(layout) and layout[-1].byte_count):
        return []
    return [
        RecordingPiece(piece.start_seconds, piece.end_seconds, bytes(file) if piece.byte_count else payload)
        for piece, file in zip(layout, files, strict=False)
    ]


async def _written(call: EncodeCall | SplitCall, writing: Awaitable[None]) -> None:
    try:
        await writing
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        # What a failed write says is not always what the peer said; the call may know that.
        await _raise_status(call)


async def _close(call: EncodeCall | SplitCall) -> None:
    try:
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        await _raise_status(call)


async def _raise_status(call: EncodeCall | SplitCall) -> None:
    """A call that ended while we still wrote: reading raises its status, if it failed."""
    while await call.read() is not grpc.aio.EOF:
        pass
