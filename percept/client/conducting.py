"""Leads one request: an LLM service generates, encoders deliver what it lacks.

Knows who calls whom, and when another replica or another try is worth while. Does
not know what a prompt or a medium means.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from percept.client.encoding import Encoding, pause
from percept.client.items import Item
from percept.client.replicas import Replica, Replicas
from percept.client.sampling import sampling_name
from protos.llm.v1 import llm_service_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from shared.deadline import Deadline
from shared.errors import (
    DeadlineError,
    InternalError,
    OverloadedError,
    PerceptError,
    UnavailableError,
)
from shared.placement import by_load

if TYPE_CHECKING:
    from protos.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub

LlmReplica: TypeAlias = "Replica[LlmServiceAsyncStub]"
Take: TypeAlias = Callable[[llm_service_pb2.GenerateResponse], Awaitable[None]]

_MEDIA_PLACE = re.compile(r"media\[([0-9]{1,4})\]")


def llm_replicas(targets: tuple[str, ...]) -> Replicas[LlmServiceAsyncStub]:
    """The LLM services behind `targets`."""
    return Replicas("LLM", targets, LlmServiceStub)


class Conducting:
    """Leads requests on the replicas of both services."""

    def __init__(
        self, llms: Replicas[LlmServiceAsyncStub], encoding: Encoding, delivery_address: str | None
    ) -> None:
        """
        Args:
            delivery_address: HOST:PORT of the LLM service as encoders reach it; None where that is
                the address that we use.
        """
        self._llms = llms
        self._encoding = encoding
        self._delivery_address = delivery_address

    async def generate(
        self, request: llm_service_pb2.GenerateRequest, items: Sequence[Item], deadline: Deadline, take: Take
    ) -> None:
        """Has a request answered; deltas and finishes go to `take`.

        A service that is full is asked again after the pause that it names.

        Raises:
            PerceptError: the request failed; where the caller's value is to blame, its place is the param.
        """
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                while (overload := await self._try_replicas(request, items, deadline, take)) is not None:
                    await pause(overload.retry_after, deadline)
        except TimeoutError:
            raise DeadlineError("the request took longer than its deadline allows") from None

    async def _try_replicas(
        self, request: llm_service_pb2.GenerateRequest, items: Sequence[Item], deadline: Deadline, take: Take
    ) -> OverloadedError | None:
        """Tries each replica once. Returns the refusal where the answer of all is that they are full."""
        overload: OverloadedError | None = None
        fault: PerceptError = UnavailableError("there is no LLM service")
        for replica in by_load(_affinity(request), await self._llms.all()):
            attempt = _Attempt(replica, request, items, deadline, take, self)
            try:
                await attempt.run()
                return None
            except OverloadedError as error:
                if attempt.started:
                    raise
                overload = error
            except UnavailableError as error:
                if attempt.started:
                    raise
                fault = error
        if overload is None:
            raise fault
        return overload

    async def deliver(self, item: Item, replica: LlmReplica, deadline: Deadline) -> None:
        """Has an item's rows brought to a replica."""
        await self._encoding.deliver(item, self._delivery_address or replica.address, deadline)


class _Attempt:
    """One `Generate` call and the deliveries for it."""

    def __init__(
        self,
        replica: LlmReplica,
        request: llm_service_pb2.GenerateRequest,
        items: Sequence[Item],
        deadline: Deadline,
        take: Take,
        conducting: Conducting,
    ) -> None:
        self.started = False
        self._replica = replica
        self._request = request
        self._items = items
        self._by_key = {item.wire.key: item for item in reversed(items)}
        self._deadline = deadline
        self._take = take
        self._conducting = conducting
        self._unfinished = request.sampling.choice_count or 1
        self._deliveries: dict[str, asyncio.Task[None]] = {}
        self._asked_again: set[str] = set()

    async def run(self) -> None:
        """
        Raises:
            PerceptError: what ended the attempt.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._read(group)
                for task in self._deliveries.values():
                    task.cancel()  # Nobody waits for it any more.
        except ExceptionGroup as group_of_faults:
            raise _chosen(group_of_faults) from None

    async def _read(self, group: asyncio.TaskGroup) -> None:
        try:
            with self._replica.call():
                call = self._replica.stub.Generate(self._request, timeout=self._deadline.remaining_s())
                try:
                    async for frame in call:
                        await self._receive(frame, group)
                        if not self._unfinished:
                            break  # The answer is whole; the status would add nothing.
                finally:
                    call.cancel()
        except PerceptError as error:
            error.param = _own_name(error.param, self._request, self._items)
            raise
        if self._unfinished:
            raise UnavailableError(f"the LLM service at {self._replica.address} ended the stream early")

    async def _receive(self, frame: llm_service_pb2.GenerateResponse, group: asyncio.TaskGroup) -> None:
        if frame.HasField("media_needed"):
            for key in frame.media_needed.keys:
                self._need(key, group)
            return
        self.started = True
        if frame.HasField("finish"):
            self._unfinished -= 1
        await self._take(frame)

    def _need(self, key: str, group: asyncio.TaskGroup) -> None:
        """Has an item delivered; asked for meanwhile, once more afterwards, as its rows may be evicted."""
        if key not in self._by_key:
            raise InternalError("the LLM service asked for an item that the request does not have")
        if key in self._deliveries:
            self._asked_again.add(key)
            return
        self._deliveries[key] = group.create_task(self._deliver(key))

    async def _deliver(self, key: str) -> None:
        try:
            while True:
                self._asked_again.discard(key)
                await self._conducting.deliver(self._by_key[key], self._replica, self._deadline)
                if key not in self._asked_again:
                    return
        finally:
            del self._deliveries[key]


def _affinity(request: llm_service_pb2.GenerateRequest) -> str:
    """Names a prompt by how it begins, so that equal beginnings meet in one prefix cache."""
    if request.HasField("conversation"):
        first = next(iter(request.conversation.messages), None)
        return str(first) + "".join(item.key for item in request.media[:1])
    return request.text[:512] if request.HasField("text") else str(list(request.token_ids.ids[:128]))


def _own_name(
    param: str | None, request: llm_service_pb2.GenerateRequest, items: Sequence[Item]
) -> str | None:
    """Turns a field path of the wire into the caller's own name for it."""
    if param is None:
        return None
    if param == "media":
        return "messages" if request.HasField("conversation") else "multi_modal_data"
    place = _MEDIA_PLACE.match(param)
    if place is not None and int(place[1]) < len(items):
        return items[int(place[1])].param
    return sampling_name(param.removeprefix("conversation."))


def _chosen(group: BaseExceptionGroup[Exception]) -> Exception:
    """The one exception that stands for all: a typed one, of those one that is no mere absence."""
    flat = list(_flattened(group))
    typed = [fault for fault in flat if isinstance(fault, PerceptError)]
    telling = [fault for fault in typed if not isinstance(fault, UnavailableError)]
    return (telling or typed or flat)[0]


def _flattened(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    flat: list[Exception] = []
    for fault in group.exceptions:
        flat += _flattened(fault) if isinstance(fault, BaseExceptionGroup) else [fault]
    return flat
