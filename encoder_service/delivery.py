"""Embeddings to the LLM services that wait for them.

Knows `PutEmbeddings` and addresses. Does not know how embeddings are made: it
takes a layout and rows to come.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from functools import partial

import grpc
from google.protobuf.descriptor import Descriptor

from encoder_service.addresses import ADDRESS, AllowedAddresses
from encoder_service.call_end import CallEnd
from encoder_service.encoding import Encoding
from encoder_service.row_stage import Loan, RowStage
from encoder_service.single_flight import SingleFlight
from protos.llm.v1 import embedding_service_pb2
from protos.tensor.v1 import tensor_pb2
from shared.errors import (
    BadEmbeddingsError,
    BadMediaError,
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    PerceptError,
    UnauthorizedError,
    UnavailableError,
    UnknownModelError,
)
from shared.families.base import EncodedItem
from shared.row_handover import FILE_METADATA
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error
from shared.telemetry import Stopwatch
from shared.wire import chunk_ranges, header_to_wire

_MAX_CHANNEL_COUNT = 64
_HANDOVER_S = 1.0
"""How long a service may take to say whether it reads our file; others get the rows over the connection."""

_FAILED_WRITE = (asyncio.InvalidStateError, grpc.aio.AioRpcError)
_ITEMS_FAULTS = (BadMediaError, BadEmbeddingsError, ContextLengthError)
_REFUSALS = (InvalidRequestError, UnauthorizedError, UnknownModelError)

PutRequest = embedding_service_pb2.PutEmbeddingsRequest
PutResponse = embedding_service_pb2.PutEmbeddingsResponse
PutCall = grpc.aio.StreamUnaryCall[PutRequest | bytes, PutResponse]

_SERVICE = embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]
_PUT_METHOD = f"/{_SERVICE.full_name}/PutEmbeddings"


class Delivery:
    """Pushes items, each once to each address, over one channel per address.

    Args:
        allowed: addresses that may be pushed to; empty for any.
        stage: shared memory for services on this machine, closed with this; None for none.
    """

    def __init__(self, allowed: Collection[str], stage: RowStage | None = None) -> None:
        self._allowed = AllowedAddresses(allowed)
        self._stage = stage
        self._channels = _Channels()
        self._pushes: SingleFlight[tuple[str, str], object, float] = SingleFlight()

    async def check(self, address: str) -> None:
        """Checks an address before anything else is done for its caller.

        Raises:
            InvalidRequestError: no HOST:PORT.
            UnavailableError: not one of those allowed. Which services there are is the
                operator's to say, and they come and go: no end client is to blame.
        """
        if not ADDRESS.fullmatch(address):
            raise InvalidRequestError("the delivery address is no HOST:PORT", param="delivery_address")
        if not await self._allowed.allow(address):
            raise UnavailableError("the delivery address is none of this encoder's LLM services")

    async def push(self, address: str, key: str, encoding: Encoding, timeout_s: float) -> float:
        """Pushes an item, or waits for the push of it that is under way.

        The caller holds `encoding` meanwhile. A push ends at the deadline of the
        caller who started it; another with time left starts it again.

        Returns: seconds from the first to the last pushed byte.

        Raises:
            UnavailableError: the LLM service is not reachable or went away.
            PerceptError: it refused the item.
        """
        stopwatch = Stopwatch()
        ours = object()
        while True:
            remaining_s = timeout_s - stopwatch.seconds()
            if remaining_s <= 0:
                raise DeadlineError("the deadline passed before the embeddings were delivered")
            flight = self._pushes.start(
                (key, address), ours, partial(self._push, address, key, encoding, remaining_s)
            )
            with flight.held():
                try:
                    return await flight.result()
                except DeadlineError:
                    # Where another started it, its time was up; ours may not be.
                    if flight.progress is ours:
                        raise

    async def close(self) -> None:
        """Closes all channels."""
        await self._allowed.close()
        await self._channels.close()
        if self._stage is not None:
            self._stage.close()

    async def _push(self, address: str, key: str, encoding: Encoding, timeout_s: float) -> float:
        try:
            async with asyncio.timeout(timeout_s) as limit, self._channels.borrowed(address) as channel:
                layout = await encoding.layout()
                header = PutRequest(header=header_to_wire(key, layout.info, layout.tensors))
                with self._loan() as loan:
                    return await _call(channel, header, encoding, loan, _remaining_s(limit))
        except TimeoutError:
            raise DeadlineError("the deadline passed before the embeddings were delivered") from None
        except grpc.aio.AioRpcError as fault:
            raise _blamed(fault, address) from fault

    def _loan(self) -> AbstractContextManager[Loan | None]:
        return nullcontext() if self._stage is None else self._stage.loan()


async def _call(
    channel: grpc.aio.Channel, header: PutRequest, encoding: Encoding, loan: Loan | None, timeout_s: float
) -> float:
    metadata = None if loan is None else ((FILE_METADATA, loan.name),)
    call = _put(channel)(timeout=timeout_s, metadata=metadata)
    try:
        return await _send(call, header, encoding, loan)
    finally:
        # Does nothing to a call that has ended well.
        call.cancel()


def _remaining_s(limit: asyncio.Timeout) -> float:
    """Seconds left, for the receiver: it must not keep room for a push that has broken off."""
    when = limit.when()
    assert when is not None, "a push has a deadline"
    return max(0.0, when - asyncio.get_running_loop().time())


def _blamed(fault: grpc.aio.AioRpcError, address: str) -> PerceptError:
    """The error of a failed push, with the blame where it belongs.

    The caller's caller sent a picture, and a 400 would tell it to send another. That
    is right only where the receiver says so of the item itself. A push that it finds
    invalid in any other way is no fault of the picture: of another width than its
    model's, or another layout than it knows, is an encoder of another checkpoint;
    too large for its whole store is a store too small for what this encoder lets
    through. Both are the operator's to mend.
    """
    peer = f"LLM service {address}"
    error = from_rpc_error(fault, peer)
    if isinstance(error, _ITEMS_FAULTS) or not isinstance(error, _REFUSALS):
        return error
    return UnavailableError(f"{peer} refused the embeddings: {error.message}")


async def _send(call: PutCall, header: PutRequest, encoding: Encoding, loan: Loan | None = None) -> float:
    """Sends the header now and the rows as they come. Returns the seconds from the first row to the last.

    An LLM service that has the item already, or needs it no more, may answer at
    any time: the rest is then not sent.
    """
    end = CallEnd(call)
    # A write fails where the call has ended meanwhile; the call's end tells how.
    with suppress(*_FAILED_WRITE):
        await call.write(header)
    stopwatch = None
    row_count = 0
    shared: bool | None = None
    async with aclosing(_until_end(call, encoding)) as parts:
        async for part in parts:
            stopwatch = stopwatch or Stopwatch()
            if shared is None:
                shared = loan is not None and await _is_read(call, loan.name)
            with suppress(*_FAILED_WRITE):
                for frame in _frames(part, row_count, loan if shared else None):
                    await call.write(frame)
            row_count += part.info.row_count
    if not call.done():
        with suppress(*_FAILED_WRITE):
            await call.done_writing()
    await end.raise_for_status()
    return 0.0 if stopwatch is None else stopwatch.seconds()


def _frames(part: EncodedItem, first_row: int, loan: Loan | None) -> Iterator[PutRequest | bytes]:
    return chunk_frames(part, first_row) if loan is None else shared_frames(part, first_row, loan)


async def _is_read(call: PutCall, name: str) -> bool:
    """Whether the receiver has found the file, which it says as soon as it is called."""
    try:
        async with asyncio.timeout(_HANDOVER_S):
            metadata = await call.initial_metadata()
    except (TimeoutError, *_FAILED_WRITE):
        return False
    return (FILE_METADATA, name) in [tuple(pair) for pair in metadata or ()]


def _put(channel: grpc.aio.Channel) -> grpc.aio.StreamUnaryMultiCallable[PutRequest | bytes, PutResponse]:
    """`PutEmbeddings` as the generated stub has it, which also takes frames that are bytes already."""
    return channel.stream_unary(
        _PUT_METHOD, request_serializer=_serialized, response_deserializer=PutResponse.FromString
    )


def _serialized(frame: PutRequest | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else frame.SerializeToString()


async def _until_end(call: PutCall, encoding: Encoding) -> AsyncGenerator[EncodedItem, None]:
    """The item's parts, as long as the call has not ended without the rest."""
    ended = asyncio.ensure_future(call.code())
    parts = aiter(encoding.parts())
    part: asyncio.Future[EncodedItem | None] | None = None
    try:
        while True:
            part = asyncio.ensure_future(_next_part(parts))
            await asyncio.wait([ended, part], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return
            found = part.result()
            if found is None:
                return
            yield found
    finally:
        ended.cancel()
        if part is not None:
            part.cancel()


async def _next_part(parts: AsyncIterator[EncodedItem]) -> EncodedItem | None:
    return await anext(parts, None)


def tensor_chunks(part: EncodedItem, first_row: int = 0) -> Iterator[tensor_pb2.TensorChunk]:
    """An item's bytes as the wire's chunks, tensor by tensor.

    Args:
        first_row: of a part, where it begins in its item.
    """
    for index, start, data in _pieces(part, first_row):
        yield tensor_pb2.TensorChunk(tensor_index=index, byte_offset=start, data=bytes(data))


def chunk_frames(part: EncodedItem, first_row: int = 0) -> Iterator[bytes]:
    """An item's rows as serialised `PutEmbeddingsRequest` frames.

    Each byte is copied once. Messages would have it copied into the chunk, from
    there into the frame and out of it again.

    Args:
        first_row: of a part, where it begins in its item.
    """
    for index, start, data in _pieces(part, first_row):
        yield _chunk_frame(index, start, data)


def shared_frames(part: EncodedItem, first_row: int, loan: Loan) -> Iterator[PutRequest | bytes]:
    """An item's rows as frames that say where they lie in the file; what finds no room there as chunks.

    Args:
        first_row: of a part, where it begins in its item.
    """
    for index, start, data in _pieces(part, first_row):
        offset = loan.put(data)
        if offset is None:
            yield _chunk_frame(index, start, data)
            continue
        chunk = embedding_service_pb2.SharedChunk(
            tensor_index=index, byte_offset=start, byte_count=len(data), file_offset=offset
        )
        yield PutRequest(shared=chunk)


def _chunk_frame(index: int, start: int, data: memoryview) -> bytes:
    head = tensor_pb2.TensorChunk(tensor_index=index, byte_offset=start).SerializeToString()
    head += _DATA_TAG + _varint(len(data))
    outer = _CHUNK_TAG + _varint(len(head) + len(data))
    return b"".join((outer, head, data))


def _pieces(part: EncodedItem, first_row: int) -> Iterator[tuple[int, int, memoryview]]:
    """Index of the tensor, place in it, and bytes of each chunk."""
    for index, tensor in enumerate(part.tensors.values()):
        data = memoryview(tensor.data).cast("B")
        begin = first_row * (len(data) // part.info.row_count)
        for start, end in chunk_ranges(len(data)):
            yield index, begin + start, data[start:end]


def _tag(message: Descriptor, field: str) -> bytes:
    """What stands before a length-delimited field on the wire."""
    return _varint(message.fields_by_name[field].number << 3 | 2)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


_DATA_TAG = _tag(tensor_pb2.TensorChunk.DESCRIPTOR, "data")
_CHUNK_TAG = _tag(PutRequest.DESCRIPTOR, "chunk")


class _Channels:
    """One channel per address, the longest unused closed where there are too many."""

    def __init__(self) -> None:
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._borrower_counts: Counter[str] = Counter()

    @asynccontextmanager
    async def borrowed(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """Lends the channel of an address; it stays open meanwhile."""
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        self._channels.move_to_end(address)
        self._borrower_counts[address] += 1
        try:
            yield self._channels[address]
        finally:
            self._borrower_counts[address] -= 1
            await self._close_surplus()

    async def close(self) -> None:
        """Closes all channels, lent ones too."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _close_surplus(self) -> None:
        idle = [address for address in self._channels if not self._borrower_counts[address]]
        for address in idle[: max(0, len(self._channels) - _MAX_CHANNEL_COUNT)]:
            del self._borrower_counts[address]
            await self._channels.pop(address).close()
