"""The RPCs of the encoder service.

Knows frames and their order. Does not know how items are encoded (`encoding`) or
delivered (`delivery`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import psutil

from encoder_service.admission import Admission
from encoder_service.batcher import Batcher
from encoder_service.cache import EmbeddingCache
from encoder_service.delivery import Delivery, tensor_chunks
from encoder_service.encoding import Encoding, Encodings
from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.splitting import Splitting
from encoder_service.upload import (
    FORMS,
    NAMES,
    EncodeHeader,
    EncodeRequest,
    SplitAudioRequest,
    UploadRules,
    receive_header,
    receive_payload,
    receive_split_header,
)
from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from shared.content_key import content_key
from shared.encode_call import CHUNK_BYTE_COUNT
from shared.errors import InvalidRequestError
from shared.rpc.interceptor import remaining_s
from shared.telemetry import Stopwatch
from shared.wire import header_to_wire, info_to_wire

EncodeResponse = encoder_service_pb2.EncodeResponse
SplitAudioResponse = encoder_service_pb2.SplitAudioResponse
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served: see `GetModelResponse`."""

    name: str
    family: str
    hidden_size: int


@dataclass(frozen=True, slots=True)
class Parts:
    """The machinery that the servicer drives and reports on."""

    admission: Admission
    encodings: Encodings
    delivery: Delivery
    cache: EmbeddingCache
    batcher: Batcher
    pool: WorkerPool
    splitting: Splitting


class EncoderServicer(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Implements `EncoderService`."""

    def __init__(
        self, model: ServedModel, rules: UploadRules, parts: Parts, default_deadline_s: float
    ) -> None:
        self._model = model
        self._rules = rules
        self._parts = parts
        self._default_deadline_s = default_deadline_s
        self._process = psutil.Process()

    async def Encode(
        self, request_iterator: AsyncIterator[EncodeRequest], context: Context
    ) -> AsyncIterator[EncodeResponse]:
        """Encodes one item: see the contract in encoder_service.proto."""
        header = await receive_header(request_iterator)
        self._rules.check(header)
        if header.delivery_address:
            await self._parts.delivery.check(header.delivery_address)
        with ExitStack() as stack:
            encoding = stack.enter_context(self._parts.encodings.held(header.item.key))
            wanted = encoding is None
            stack.enter_context(self._parts.admission.permit(header.byte_count if wanted else 0))
            yield EncodeResponse(accepted=encoder_service_pb2.Accepted(payload_wanted=wanted))
            if encoding is None:
                encoding = await self._start(stack, request_iterator, header)
            layout = await encoding.layout()
            yield EncodeResponse(info=info_to_wire(layout.info))
            if header.delivery_address:
                yield await self._deliver(header, encoding, context)
            else:
                async for frame in _returned(header.item.key, encoding):
                    yield frame

    async def SplitAudio(
        self, request_iterator: AsyncIterator[SplitAudioRequest], context: Context
    ) -> AsyncIterator[SplitAudioResponse]:
        """Cuts one recording: see the contract in encoder_service.proto."""
        header = await receive_split_header(request_iterator)
        self._rules.check_recording(header)
        with self._parts.admission.permit(header.byte_count):
            yield SplitAudioResponse(accepted=encoder_service_pb2.Accepted(payload_wanted=True))
            payload = await receive_payload(request_iterator, header.byte_count)
            async with self._parts.splitting.split(payload) as recording:
                yield SplitAudioResponse(pieces=recording.layout())
                for file in recording.files():
                    for start in range(0, len(file), CHUNK_BYTE_COUNT):
                        yield SplitAudioResponse(chunk=file[start : start + CHUNK_BYTE_COUNT])

    async def GetModel(
        self, request: encoder_service_pb2.GetModelRequest, context: Context
    ) -> encoder_service_pb2.GetModelResponse:
        """Tells what is served."""
        return encoder_service_pb2.GetModelResponse(
            model=self._model.name,
            family=self._model.family,
            hidden_size=self._model.hidden_size,
            modalities=sorted(self._rules.modalities),
            max_payload_byte_count=self._rules.max_byte_count,
        )

    async def GetStatus(
        self, request: encoder_service_pb2.GetStatusRequest, context: Context
    ) -> encoder_service_pb2.GetStatusResponse:
        """Tells load and counters."""
        parts = self._parts
        return encoder_service_pb2.GetStatusResponse(
            pending_item_count=parts.admission.item_count,
            max_pending_item_count=parts.admission.max_item_count,
            cache_byte_count=parts.cache.byte_count,
            max_cache_byte_count=parts.cache.max_byte_count,
            cache_hit_count=parts.cache.hit_count,
            cache_miss_count=parts.cache.miss_count,
            encoded_item_count=parts.batcher.item_count,
            tower_run_count=parts.batcher.run_count,
            lost_worker_count=parts.pool.lost_worker_count,
            resident_byte_count=self._process.memory_info().rss,
        )

    async def _start(
        self, stack: ExitStack, frames: AsyncIterator[EncodeRequest], header: EncodeHeader
    ) -> Encoding:
        encodings, item = self._parts.encodings, header.item
        turn = encodings.next_turn()
        with encodings.coming(turn):
            payload = await receive_payload(frames, header.byte_count)
            key = await asyncio.to_thread(content_key, item.modality, item.form, item.settings, payload)
            if key != item.key:
                raise InvalidRequestError("the payload does not match its key", param="item.key")
            job = Job(FORMS[item.form], item.settings, NAMES[item.modality])
            return stack.enter_context(encodings.started(key, job, payload, turn))

    async def _deliver(self, header: EncodeHeader, encoding: Encoding, context: Context) -> EncodeResponse:
        timeout_s = remaining_s(context, self._default_deadline_s)
        seconds = await self._parts.delivery.push(
            header.delivery_address, header.item.key, encoding, timeout_s
        )
        return _trailer(encoding, seconds)


async def _returned(key: str, encoding: Encoding) -> AsyncIterator[EncodeResponse]:
    """The frames that carry an item back to its caller, each part's as soon as it is there."""
    layout = await encoding.layout()
    yield EncodeResponse(header=header_to_wire(key, layout.info, layout.tensors))
    stopwatch = None
    row_count = 0
    async for part in encoding.parts():
        stopwatch = stopwatch or Stopwatch()
        for chunk in tensor_chunks(part, row_count):
            yield EncodeResponse(chunk=chunk)
        row_count += part.info.row_count
    yield _trailer(encoding, 0.0 if stopwatch is None else stopwatch.seconds())


def _trailer(encoding: Encoding, transfer_seconds: float) -> EncodeResponse:
    timings = encoding.timings()
    return EncodeResponse(
        trailer=encoder_service_pb2.EncodeTrailer(
            queue_seconds=timings.queue_seconds,
            decode_seconds=timings.decode_seconds,
            encode_seconds=timings.encode_seconds,
            transfer_seconds=transfer_seconds,
            cache_hit=timings.cache_hit,
        )
    )
