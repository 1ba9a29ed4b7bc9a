"""A gate in front of an LLM service: lets rows through, or holds them until all items of a request are whole.

What a service with a barrier between encoding and prefill would do, made out of
services that have none. Knows the frames of a push. Keeps no state between requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from protos.llm.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    llm_service_pb2,
    llm_service_pb2_grpc,
)
from shared.rpc.channel import open_channel

Put = embedding_service_pb2.PutEmbeddingsRequest
Context = grpc.aio.ServicerContext[Any, Any]


class Barrier:
    """Holds the rows of `count` items until the last of them has come.

    1 holds an item's rows until it is whole itself, 0 nothing at all.
    """

    def __init__(self) -> None:
        self.count = 1
        self._waiting = 0
        self._open = asyncio.Event()

    async def passed(self) -> None:
        """Waits for the others, then lets all of them go on."""
        self._waiting += 1
        if self._waiting >= self.count:
            self._waiting = 0
            self._open.set()
            self._open = asyncio.Event()
            return
        await self._open.wait()


class _Embeddings(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, target: grpc.aio.Channel, barrier: Barrier) -> None:
        self._stub = embedding_service_pb2_grpc.EmbeddingServiceStub(target)
        self._barrier = barrier

    async def PutEmbeddings(
        self, request_iterator: AsyncIterator[Put], context: Context
    ) -> embedding_service_pb2.PutEmbeddingsResponse:
        """Passes the header on at once, and the rows when the barrier lets them."""
        call = self._stub.PutEmbeddings(timeout=context.time_remaining())
        frames = request_iterator.__aiter__()
        await call.write(await anext(frames))
        if self._barrier.count == 0:
            async for frame in frames:
                await call.write(frame)
            await call.done_writing()
            return await call
        rows = [frame async for frame in frames]
        await self._barrier.passed()
        for frame in rows:
            await call.write(frame)
        await call.done_writing()
        return await call


class _Generation(llm_service_pb2_grpc.LlmServiceServicer):
    def __init__(self, target: grpc.aio.Channel) -> None:
        self._stub = llm_service_pb2_grpc.LlmServiceStub(target)

    async def Generate(
        self, request: llm_service_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[llm_service_pb2.GenerateResponse]:
        """Passes everything on."""
        async for frame in self._stub.Generate(request, timeout=context.time_remaining()):
            yield frame

    async def Tokenize(
        self, request: llm_service_pb2.TokenizeRequest, context: Context
    ) -> llm_service_pb2.TokenizeResponse:
        """Passes the question on."""
        return await self._stub.Tokenize(request, timeout=10)

    async def Detokenize(
        self, request: llm_service_pb2.DetokenizeRequest, context: Context
    ) -> llm_service_pb2.DetokenizeResponse:
        """Passes the question on."""
        return await self._stub.Detokenize(request, timeout=10)

    async def GetModel(
        self, request: llm_service_pb2.GetModelRequest, context: Context
    ) -> llm_service_pb2.GetModelResponse:
        """Passes the question on."""
        return await self._stub.GetModel(request, timeout=10)

    async def GetStatus(
        self, request: llm_service_pb2.GetStatusRequest, context: Context
    ) -> llm_service_pb2.GetStatusResponse:
        """Passes the question on."""
        return await self._stub.GetStatus(request, timeout=10)


class EmbeddingGate:
    """The gate, served on a free port of the loopback address.

    Attributes:
        address: HOST:PORT that stands for the LLM service.
        barrier: whether rows wait for one another.
    """

    def __init__(self, llm: str) -> None:
        self._llm = llm
        self.address = ""
        self.barrier = Barrier()

    async def start(self) -> None:
        """Starts to serve."""
        from shared.rpc.server import ServiceRegistration, build_server

        self._channel = open_channel(self._llm)
        embeddings, generation = _Embeddings(self._channel, self.barrier), _Generation(self._channel)

        def add_embeddings(server: grpc.aio.Server) -> None:
            embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(embeddings, server)

        def add_generation(server: grpc.aio.Server) -> None:
            llm_service_pb2_grpc.add_LlmServiceServicer_to_server(generation, server)

        self._server = build_server(
            [
                ServiceRegistration("protos.llm.v1.EmbeddingService", add_embeddings),
                ServiceRegistration("protos.llm.v1.LlmService", add_generation),
            ],
            default_deadline_s=600,
            max_concurrent_calls=64,
        )
        self.address = f"127.0.0.1:{await self._server.start('127.0.0.1:0')}"
        await self._server.serving()

    async def close(self) -> None:
        """Ends all calls."""
        await self._server.drain(0)
        await self._channel.close()
