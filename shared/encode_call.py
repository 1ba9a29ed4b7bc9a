"""The caller's side of an `Encode` call: header, `accepted`, payload, then what comes back.

Knows the order of the frames. Does not know which service is called nor why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from protos.encoder.v1 import encoder_service_pb2

CHUNK_BYTE_COUNT = 512 * 1024
"""Bytes of a payload in one frame."""

EncodeCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[encoder_service_pb2.EncodeRequest, encoder_service_pb2.EncodeResponse]"
)


async def converse(
    call: EncodeCall, header: encoder_service_pb2.EncodeHeader, payload: bytes
) -> AsyncIterator[encoder_service_pb2.EncodeResponse]:
    """Sends header and payload; yields what follows `accepted`.

    Raises:
        grpc.aio.AioRpcError: the call's status.
    """
    await _write(call, encoder_service_pb2.EncodeRequest(header=header))
    first = await call.read()
    if isinstance(first, encoder_service_pb2.EncodeResponse) and first.accepted.payload_wanted:
        for start in range(0, len(payload), CHUNK_BYTE_COUNT):
            chunk = payload[start : start + CHUNK_BYTE_COUNT]
            await _write(call, encoder_service_pb2.EncodeRequest(chunk=chunk))
    await _close(call)
    while isinstance(frame := await call.read(), encoder_service_pb2.EncodeResponse):
        yield frame


async def _write(call: EncodeCall, frame: encoder_service_pb2.EncodeRequest) -> None:
    try:
        await call.write(frame)
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        # What a failed write says is not always what the peer said; the call may know that.
        await _raise_status(call)


async def _close(call: EncodeCall) -> None:
    try:
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        await _raise_status(call)


async def _raise_status(call: EncodeCall) -> None:
    """A call that ended while we still wrote: reading raises its status, if it failed."""
    while await call.read() is not grpc.aio.EOF:
        pass
