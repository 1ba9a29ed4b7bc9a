"""Items to encoder services: delivered to an LLM service, or fetched back as tensors.

Knows the `Encode` call, and when another replica or another try is worth while.
Does not know why the item is needed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from percept.client.items import SETTINGS_PATH, Item, settings_name
from percept.client.replicas import Replica, Replicas
from protos.encoder.v1 import encoder_service_pb2
from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceStub
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

if TYPE_CHECKING:
    from percept.client.fetched import Fetched
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub

EncoderReplica: TypeAlias = "Replica[EncoderServiceAsyncStub]"
T = TypeVar("T")

_MAX_ROUNDS = 8
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def encoder_replicas(targets: tuple[str, ...]) -> Replicas[EncoderServiceAsyncStub]:
    """The encoders behind `targets`."""
    return Replicas("encoder", targets, EncoderServiceStub)


class Encoding:
    """Encodes items on the replicas of encoder services."""

    def __init__(self, encoders: Replicas[EncoderServiceAsyncStub]) -> None:
        self._encoders = encoders

    async def deliver(self, item: Item, address: str, deadline: Deadline) -> None:
        """Returns when the item's rows are at `address`.

        Raises:
            PerceptError: the item is bad (its place is the param), no encoder was there for
                long enough, or the deadline passed.
        """

        async def once(replica: EncoderReplica) -> None:
            await _deliver(replica, item, address, deadline)

        try:
            await self._on_a_replica(item, once, deadline)
        except PerceptError as error:
            if type(error) is InvalidRequestError and error.param is None:
                # About neither the item nor its settings: the encoder and the LLM service disagree.
                text = f"an item could not be delivered to the LLM service at {address}: {error.message}"
                raise InternalError(text) from error
            raise

    async def fetch(self, item: Item, deadline: Deadline) -> Fetched:
        """Returns the item's tensors.

        Raises:
            PerceptError: as `deliver`.
        """
        from percept.client.fetched import fetch

        return await self._on_a_replica(item, lambda replica: fetch(replica, item, deadline), deadline)

    async def split(self, recording: Item, deadline: Deadline) -> list[RecordingPiece]:
        """Cuts a recording into pieces that the model hears at once.

        Raises:
            PerceptError: as `deliver`.
        """

        async def once(replica: EncoderReplica) -> list[RecordingPiece]:
            with replica.call():
                call = replica.stub.SplitAudio(timeout=deadline.remaining_s())
                try:
                    pieces = await split(call, recording.payload, lambda count: None)
                finally:
                    call.cancel()
            if not pieces:
                raise UnavailableError(f"the encoder service at {replica.address} ended the stream early")
            return pieces

        return await self._on_a_replica(recording, once, deadline)

    async def model(self, deadline: Deadline) -> encoder_service_pb2.GetModelResponse:
        """What the encoders serve.

        Raises:
            PerceptError: none answers.
        """
        fault: PerceptError | None = None
        for replica in await self._encoders.all():
            try:
                with replica.call():
                    request = encoder_service_pb2.GetModelRequest()
                    return await replica.stub.GetModel(request, timeout=deadline.remaining_s())
            except UnavailableError as error:
                fault = error
        raise fault or UnavailableError("there is no encoder service")

    async def status(self, deadline: Deadline) -> list[encoder_service_pb2.GetStatusResponse]:
        """How busy each replica is that answers."""
        answers = []
        for replica in await self._encoders.all():
            try:
                with replica.call():
                    request = encoder_service_pb2.GetStatusRequest()
                    answers.append(await replica.stub.GetStatus(request, timeout=deadline.remaining_s()))
            except UnavailableError:
                continue
        return answers

    async def _on_a_replica(
        self, item: Item, work: Callable[[EncoderReplica], Awaitable[T]], deadline: Deadline
    ) -> T:
        """Tries the replicas in the key's own order: the same encoder has an item in its cache.

        A full one is tried again after the pause that it asks for, for as long as the
        deadline allows; where all are gone, a few times, for another may be starting.
        """
        pause_s, rounds = _FIRST_PAUSE_S, 0
        while True:
            fault: PerceptError = UnavailableError("there is no encoder service")
            for replica in by_preference(item.wire.key, await self._encoders.all()):
                try:
                    return await work(replica)
                except OverloadedError as error:
                    fault = error
                except UnavailableError as error:
                    fault = fault if isinstance(fault, OverloadedError) else error
                except (InvalidRequestError, MediaFetchError) as error:
                    raise _blaming(error, item) from error.__cause__
            if isinstance(fault, OverloadedError):
                await pause(fault.retry_after, deadline)
                continue
            rounds += 1
            if rounds >= _MAX_ROUNDS:
                raise fault
            await pause(pause_s, deadline)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def pause(seconds: float, deadline: Deadline) -> None:
    """Waits about so long, callers apart from each other.

    Raises:
        DeadlineError: the deadline passed.
    """
    await asyncio.sleep(min(seconds * random.uniform(0.75, 1.5), deadline.remaining_s()))
    deadline.remaining_s()


def _blaming(error: PerceptError, item: Item) -> PerceptError:
    if type(error) is not InvalidRequestError:
        error.param = item.param
    elif error.param is not None and error.param.startswith(SETTINGS_PATH):
        error.param = settings_name(error.param)
    else:
        error.param = None
    return error


async def _deliver(replica: EncoderReplica, item: Item, address: str, deadline: Deadline) -> None:
    header = encoder_service_pb2.EncodeHeader(
        item=item.wire, byte_count=len(item.payload), delivery_address=address
    )
    whole = False
    with replica.call():
        call = replica.stub.Encode(timeout=deadline.remaining_s())
        try:
            async for frame in converse(call, header, item.payload):
                whole = whole or frame.HasField("trailer")
        finally:
            call.cancel()
    if not whole:
        raise UnavailableError(f"the encoder service at {replica.address} ended the stream early")
