"""Has one item encoded and delivered, or one recording cut, on whichever encoder replica can.

Knows the `Encode` and `SplitAudio` calls and when another replica is worth a try. Does not know
why.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from gateway.budget import Take
from gateway.item_settings import request_path
from gateway.media import ResolvedItem
from gateway.metrics import Stages
from gateway.replicas import Replica, ReplicaSet, typed_failures
from protos.encoder.v1 import encoder_service_pb2
from shared.deadline import Deadline
from shared.encode_call import RecordingPiece, converse, split
from shared.errors import (
    InternalError,
    InvalidRequestError,
    MediaFetchError,
    OverloadedError,
    PerceptError,
    UnavailableError,
)
from shared.placement import by_preference
from shared.settings import ModalityName

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub

EncoderReplica: TypeAlias = "Replica[EncoderServiceAsyncStub, encoder_service_pb2.GetModelResponse]"
EncoderSet: TypeAlias = "ReplicaSet[EncoderServiceAsyncStub, encoder_service_pb2.GetModelResponse]"

T = TypeVar("T")

_MAX_ROUNDS = 8
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Encoding:
    """Encodes items on the replicas of one set."""

    def __init__(self, encoders: EncoderSet, stages: Stages) -> None:
        self._encoders = encoders
        self._stages = stages

    async def deliver(self, item: ResolvedItem, delivery_address: str, deadline: Deadline) -> None:
        """Returns when the item's rows are at `delivery_address`.

        Tries the replicas in the key's own order. A replica that is gone is passed
        over; when all are, they are tried again after a pause, a few times, for
        another may be starting.

        Raises:
            PerceptError: the item is bad (its part's path is the param), every replica
                is full, or none was there for long enough.
        """

        async def attempt(replica: EncoderReplica) -> None:
            await self._encode(replica, item, delivery_address, deadline)

        await _on_one_of(self._encoders, item.item.key, deadline, attempt)

    async def split(self, payload: bytes, key: str, deadline: Deadline, take: Take) -> list[RecordingPiece]:
        """Cuts a recording into pieces that the model hears at once.

        Args:
            key: of the recording, for the choice of a replica.
            take: told of the bytes that are about to be kept.

        Raises:
            PerceptError: the recording is bad, or no replica could cut it; see `deliver`.
        """

        async def attempt(replica: EncoderReplica) -> list[RecordingPiece]:
            with replica.in_use(), typed_failures("encoder", replica):
                pieces = await _read_pieces(replica, payload, deadline, take)
            if not pieces:
                raise UnavailableError("the encoder service ended the stream early")
            return pieces

        return await _on_one_of(self._encoders, key, deadline, attempt)

    async def _encode(
        self, replica: EncoderReplica, item: ResolvedItem, delivery_address: str, deadline: Deadline
    ) -> None:
        try:
            with replica.in_use(), typed_failures("encoder", replica):
                trailer = await _read_trailer(replica, item, delivery_address, deadline)
        except PerceptError as error:
            raise _blaming(error, item) from error.__cause__
        if trailer is None:
            raise UnavailableError("the encoder service ended the stream early")
        self._observe(trailer, item.modality)

    def _observe(self, trailer: encoder_service_pb2.EncodeTrailer, modality: ModalityName) -> None:
        observe = self._stages.observe_stage
        if not trailer.cache_hit:
            observe("encoder_queue", trailer.queue_seconds, modality)
            observe("decode", trailer.decode_seconds, modality)
            observe("encode", trailer.encode_seconds, modality)
        observe("transfer", trailer.transfer_seconds, modality)


async def _on_one_of(
    encoders: EncoderSet,
    key: str,
    deadline: Deadline,
    attempt: Callable[[EncoderReplica], Awaitable[T]],
) -> T:
    """Tries the replicas in the order of `key`; see `Encoding.deliver`."""
    pause_s = _FIRST_PAUSE_S
    fault: PerceptError = UnavailableError("No encoder service is ready.")
    for _ in range(_MAX_ROUNDS):
        refused = False
        for replica in by_preference(key, encoders.serving):
            try:
                return await attempt(replica)
            except OverloadedError as error:
                refused, fault = True, error
            except UnavailableError as error:
                fault = error
        if refused:
            break
        await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.5), deadline.remaining_s()))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    raise fault


def _blaming(error: PerceptError, item: ResolvedItem) -> PerceptError:
    """Names the item where it is to blame, or the request's settings for it.

    Any other invalid request that is not about media is about what the gateway, the
    encoder and the LLM service say to each other, or about the server's own settings:
    no item of the client can mend it.
    """
    path, error.param = error.param or "", None
    if type(error) is InvalidRequestError:
        setting = request_path(path)
        if setting is not None and setting.partition(".")[0] in item.own_settings:
            error.param = setting
            return error
        if setting is not None:
            return InternalError(f"The server's own settings do not suit the model: {error.message}")
        return InternalError(f"The item could not be delivered to the LLM service: {error.message}")
    if isinstance(error, InvalidRequestError | MediaFetchError):
        error.param = item.param
    return error


async def _read_trailer(
    replica: EncoderReplica, item: ResolvedItem, delivery_address: str, deadline: Deadline
) -> encoder_service_pb2.EncodeTrailer | None:
    header = encoder_service_pb2.EncodeHeader(
        item=item.item, byte_count=len(item.payload), delivery_address=delivery_address
    )
    call = replica.stub.Encode(timeout=deadline.remaining_s())
    trailer: encoder_service_pb2.EncodeTrailer | None = None
    try:
        async for frame in converse(call, header, item.payload):
            if frame.HasField("trailer"):
                trailer = frame.trailer
    finally:
        call.cancel()
    return trailer


async def _read_pieces(
    replica: EncoderReplica, payload: bytes, deadline: Deadline, take: Take
) -> list[RecordingPiece]:
    call = replica.stub.SplitAudio(timeout=deadline.remaining_s())
    try:
        return await split(call, payload, take)
    finally:
        call.cancel()
