"""`EmbeddingService`: rows come in from encoder services.

Knows the frames of a push and what its header must hold. Does not know who
wants the rows, nor where they go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from llm_service.embedding_push import Push
from llm_service.embedding_store import EmbeddingStore
from llm_service.put_frames import RowChunk, read_put_frame
from llm_service.shared_rows import SharedFile, open_shared
from protos.llm.v1 import embedding_service_pb2 as pb
from protos.media.v1 import media_pb2
from shared.content_key import is_key
from shared.errors import InvalidRequestError
from shared.row_handover import FILE_METADATA
from shared.rpc.server import ServiceRegistration
from shared.wire import TensorLayout, info_from_wire, layouts_from_wire

Frame = pb.PutEmbeddingsRequest | RowChunk

_SERVICE = pb.DESCRIPTOR.services_by_name["EmbeddingService"]
_ROW_TYPES = frozenset({"float32", "float16", "bfloat16"})


def embedding_service(servicer: EmbeddingServicer) -> ServiceRegistration:
    """The service as a server's, with frames that are not copied."""

    def register(server: grpc.aio.Server) -> None:
        put = grpc.stream_unary_rpc_method_handler(
            servicer.PutEmbeddings,
            request_deserializer=read_put_frame,
            response_serializer=pb.PutEmbeddingsResponse.SerializeToString,
        )
        answering = grpc.method_handlers_generic_handler(_SERVICE.full_name, {"PutEmbeddings": put})
        server.add_generic_rpc_handlers((answering,))

    return ServiceRegistration(_SERVICE.full_name, register)


class EmbeddingServicer:
    """Takes pushes into the store."""

    def __init__(
        self, store: EmbeddingStore, widths: Mapping[str, int], shared_folder: Path | None = None
    ) -> None:
        """Args:
        widths: the tensors that an item has, in order, and the width of each.
        shared_folder: where encoders on this machine put rows; None where there are none.
        """
        self._store = store
        self._widths = dict(widths)
        self._shared_folder = shared_folder

    async def PutEmbeddings(
        self,
        request_iterator: AsyncIterator[Frame],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.PutEmbeddingsResponse:
        """Receives one item: waits for room on the header, then reads the rows."""
        async with self._shared_file(context) as file:
            return await self._receive(request_iterator.__aiter__(), file)

    async def _receive(
        self, frames: AsyncIterator[Frame], file: SharedFile | None
    ) -> pb.PutEmbeddingsResponse:
        push = await self._open(frames)
        try:
            granted = await push.granted
            async for frame in frames:
                if not isinstance(frame, RowChunk) and frame.WhichOneof("frame") != "shared":
                    raise InvalidRequestError("after the header come chunks", param="frame")
                if granted:
                    self._take(push, frame, file)
            stored = granted and self._store.finish(push)
        finally:
            self._store.discard(push)
        return pb.PutEmbeddingsResponse(stored=stored)

    @asynccontextmanager
    async def _shared_file(
        self, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[SharedFile | None, None]:
        """Opens the file that the encoder names, and says whether it is there."""
        named = [value for key, value in context.invocation_metadata() or () if key == FILE_METADATA]
        if not named:
            yield None
            return
        name = str(named[0])
        file = None if self._shared_folder is None else open_shared(self._shared_folder, name)
        try:
            await context.send_initial_metadata(((FILE_METADATA, name),) if file is not None else ())
            yield file
        finally:
            if file is not None:
                file.close()

    def _take(self, push: Push, frame: Frame, file: SharedFile | None) -> None:
        if isinstance(frame, RowChunk):
            self._store.write(push, frame.tensor_index, frame.byte_offset, frame.data)
            return
        if file is None:
            raise InvalidRequestError("no shared file was agreed on", param="shared")
        chunk = frame.shared
        read = partial(file.read_into, offset=chunk.file_offset)
        self._store.take(push, chunk.tensor_index, chunk.byte_offset, chunk.byte_count, read)

    async def _open(self, frames: AsyncIterator[Frame]) -> Push:
        try:
            first = await anext(frames)
        except StopAsyncIteration:
            raise InvalidRequestError("the stream is empty", param="frame") from None
        if isinstance(first, RowChunk) or first.WhichOneof("frame") != "header":
            raise InvalidRequestError("the first frame is the header", param="frame")
        header = first.header
        if not is_key(header.key):
            raise InvalidRequestError("a key is 64 lower-case hexadecimal digits", param="header.key")
        return self._store.offer(header.key, info_from_wire(header.info), self._tensors(header))

    def _tensors(self, header: media_pb2.EmbeddingsHeader) -> list[TensorLayout]:
        tensors = layouts_from_wire(header)
        for index, tensor in enumerate(tensors):
            if tensor.data_type not in _ROW_TYPES or len(tensor.shape) != 2:
                raise InvalidRequestError(
                    "embedding tensors are floats of (rows, width)", param=f"header.tensors[{index}]"
                )
        widths = [(tensor.name, tensor.shape[1]) for tensor in tensors]
        if widths != list(self._widths.items()):
            wanted = ", ".join(f"{name} (rows, {width})" for name, width in self._widths.items())
            raise InvalidRequestError(f"the tensors of an item are {wanted}", param="header.tensors")
        return tensors
