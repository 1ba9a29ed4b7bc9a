"""A small LLM side: a real gRPC server that takes embeddings, well or badly, as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import grpc

from protos.llm.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from protos.media.v1 import media_pb2
from shared.errors import BadEmbeddingsError, DeadlineError, InvalidRequestError, PerceptError
from shared.rpc.server import ServiceRegistration, build_server
from shared.wire import layouts_from_wire

Behaviour = Literal["take", "drop", "refuse", "blame", "late", "stall", "leave", "cancel"]
"""take: reads all · drop: answers on the header that it needs nothing · refuse: fails on the header ·
blame: says on the header that the item is bad · late: says on the header that its own time is up ·
stall: never reads a chunk · leave: fails in the middle · cancel: ends in the middle as if cancelled."""

_ON_THE_HEADER: dict[str, PerceptError] = {
    "refuse": InvalidRequestError("the item is larger than the store"),
    "blame": BadEmbeddingsError("the rows do not fit"),
    "late": DeadlineError("the receiver's own time was up"),
}


class Receiver(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Keeps what was pushed.

    Attributes:
        headers: of all pushes, in order of arrival.
        items: the tensors' bytes of whole pushes, by key.
        received: bytes of each tensor of the latest push that are here.
        cancelled: pushes that broke off.
        remaining_s: what the last push left us of its deadline; None where it set none.
    """

    def __init__(self, behaviour: Behaviour = "take") -> None:
        self.behaviour = behaviour
        self.headers: list[media_pb2.EmbeddingsHeader] = []
        self.items: dict[str, list[bytes]] = {}
        self.received: list[int] = []
        self.cancelled = 0
        self.remaining_s: float | None = None
        self.header_came = asyncio.Event()

    async def PutEmbeddings(self, request_iterator: Any, context: Any) -> Any:
        header = (await anext(request_iterator)).header
        self.headers.append(header)
        self.remaining_s = context.time_remaining()
        self.header_came.set()
        if self.behaviour == "drop":
            return embedding_service_pb2.PutEmbeddingsResponse(stored=False)
        if self.behaviour in _ON_THE_HEADER:
            raise _ON_THE_HEADER[self.behaviour]
        try:
            if self.behaviour == "stall":
                await asyncio.Event().wait()
            await self._take(header, request_iterator, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return embedding_service_pb2.PutEmbeddingsResponse(stored=True)

    async def _take(self, header: media_pb2.EmbeddingsHeader, frames: Any, context: Any) -> None:
        layouts = layouts_from_wire(header)
        tensors = [bytearray() for _ in layouts]
        async for frame in frames:
            tensor = tensors[frame.chunk.tensor_index]
            assert frame.chunk.byte_offset == len(tensor), "chunks come in order and without gaps"
            assert len(frame.chunk.data) <= 1024 * 1024, "chunks have at most 1 MiB"
            tensor += frame.chunk.data
            self.received = [len(taken) for taken in tensors]
            if self.behaviour == "leave":
                raise InvalidRequestError("leaving in the middle")
            if self.behaviour == "cancel":
                await context.abort(grpc.StatusCode.CANCELLED, "the server stops")
        if [len(tensor) for tensor in tensors] != [layout.byte_count for layout in layouts]:
            # The sender broke off: a half item is no item.
            self.cancelled += 1
            return
        self.items[header.key] = [bytes(tensor) for tensor in tensors]


@asynccontextmanager
async def receiving(behaviour: Behaviour = "take") -> AsyncIterator[tuple[Receiver, str]]:
    """Serves a receiver on a free port; gives it and its address."""
    receiver = Receiver(behaviour)
    registration = ServiceRegistration(
        "protos.llm.v1.EmbeddingService",
        lambda server: embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(receiver, server),
    )
    server = build_server([registration], default_deadline_s=60, max_concurrent_calls=1000)
    port = await server.start("127.0.0.1:0")
    await server.serving()
    try:
        yield receiver, f"127.0.0.1:{port}"
    finally:
        await server.drain(0)
