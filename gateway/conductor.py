"""Conducts one request: the LLM generates, encoders deliver what it lacks.

Knows who calls whom and when another replica takes over. Does not know HTTP, nor
what a prompt or a picture means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gateway.encoding import Encoding
from gateway.errors import as_percept_error, chosen
from gateway.frames import FrameQueue
from gateway.media import ResolvedItem
from gateway.replicas import Replica, ReplicaSet, typed_failures
from gateway.translate import to_request_param
from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline
from shared.errors import InternalError, OverloadedError, PerceptError, UnavailableError
from shared.placement import by_load

if TYPE_CHECKING:
    from protos.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub

LlmReplica: TypeAlias = "Replica[LlmServiceAsyncStub, llm_service_pb2.GetModelResponse]"
LlmSet: TypeAlias = "ReplicaSet[LlmServiceAsyncStub, llm_service_pb2.GetModelResponse]"
Frames = FrameQueue[llm_service_pb2.GenerateResponse]

# Frames that wait for a slow client; then gRPC's flow control holds the LLM back.
_MAX_WAITING_FRAMES = 64
# How long a call may take to end after its last frame.
_ENDING_S = 5.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """One request, ready to be conducted.

    Attributes:
        request: what the LLM service is asked.
        items: the request's media, their bytes at hand.
        affinity: name of the conversation, for the choice of a replica.
        deadline: of the whole request.
        names: what the request calls the wire's fields; see `to_request_param`.
    """

    request: llm_service_pb2.GenerateRequest
    items: Sequence[ResolvedItem]
    affinity: str
    deadline: Deadline
    names: Mapping[str, str]


class _ReplicaRefused(Exception):
    """A replica is full or gone, and the client has not seen anything of it yet."""

    def __init__(self, error: PerceptError) -> None:
        super().__init__(error.message)
        self.error = error


class Conductor:
    """Runs requests on the replicas of both services."""

    def __init__(self, llms: LlmSet, encoding: Encoding) -> None:
        self._llms = llms
        self._encoding = encoding
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def generate(self, assignment: Assignment) -> AsyncIterator[Frames]:
        """Opens a request; yields its deltas and finishes. Leaving cancels whatever still runs.

        The frames end with the last finish, or with a PerceptError where the request failed.
        """
        frames = Frames(_MAX_WAITING_FRAMES)
        running = asyncio.create_task(self._run(assignment, frames))
        try:
            yield frames
        finally:
            if frames.complete:
                self._let_end(running)
            else:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def text_of(self, token_ids: Sequence[int], deadline: Deadline, names: Mapping[str, str]) -> str:
        """The text of tokens, special ones left out, from any LLM service.

        Args:
            names: see `Assignment`.

        Raises:
            PerceptError: a token is unknown, or nobody answers.
        """
        request = llm_service_pb2.DetokenizeRequest(token_ids=token_ids)
        fault: PerceptError = UnavailableError("No LLM service is ready.")
        for replica in by_load("", self._llms.serving):
            try:
                with replica.in_use(), typed_failures("LLM", replica):
                    answer = await replica.stub.Detokenize(request, timeout=deadline.remaining_s())
                return answer.text
            except (UnavailableError, OverloadedError) as error:
                fault = error
            except PerceptError as error:
                error.param = to_request_param(error.param, (), names)
                raise
        raise fault

    def _let_end(self, running: asyncio.Task[None]) -> None:
        """The answer is whole, and nobody waits for the call's status: it comes soon, or is not awaited."""
        timer = asyncio.get_running_loop().call_later(_ENDING_S, running.cancel)
        self._ending.add(running)
        running.add_done_callback(self._ending.discard)
        running.add_done_callback(lambda _: timer.cancel())

    async def _run(self, assignment: Assignment, frames: Frames) -> None:
        try:
            async with asyncio.timeout(assignment.deadline.remaining_s()):
                await self._try_replicas(assignment, frames)
        except Exception as fault:
            frames.close(as_percept_error(fault))
        except BaseException:
            # Whatever ends us, the reader must not wait for ever.
            frames.close(UnavailableError("the LLM service is not reachable"))
            raise
        else:
            frames.close()

    async def _try_replicas(self, assignment: Assignment, frames: Frames) -> None:
        """Tries each replica once, in the order of affinity and load."""
        fault: PerceptError = UnavailableError("No LLM service is ready.")
        for replica in by_load(assignment.affinity, self._llms.serving):
            try:
                return await self._attempt(replica, assignment, frames)
            except _ReplicaRefused as refused:
                # Being full is an answer, being gone is none.
                if not isinstance(fault, OverloadedError):
                    fault = refused.error
        raise fault

    async def _attempt(self, replica: LlmReplica, assignment: Assignment, frames: Frames) -> None:
        try:
            with replica.in_use():
                async with asyncio.TaskGroup() as group:
                    deliveries = _Deliveries(group, self._encoding, replica.address, assignment)
                    await _Reading(replica, assignment, frames, deliveries).run()
                    deliveries.cancel()
        except ExceptionGroup as group:
            raise chosen(group, _ReplicaRefused) from None


class _Reading:
    """Reads one `Generate` call: needs go to encoders, the rest to the client."""

    def __init__(
        self, replica: LlmReplica, assignment: Assignment, frames: Frames, deliveries: _Deliveries
    ) -> None:
        self._replica = replica
        self._assignment = assignment
        self._frames = frames
        self._deliveries = deliveries
        self._unfinished = assignment.request.sampling.choice_count or 1
        self._started = False

    async def run(self) -> None:
        """
        Raises:
            _ReplicaRefused: another replica may take the request.
            PerceptError: none may.
        """
        try:
            with typed_failures("LLM", self._replica):
                await self._read()
        except PerceptError as error:
            raise self._explain(error) from error.__cause__
        if self._unfinished:
            raise self._explain(UnavailableError("the LLM service ended the stream early"))

    async def _read(self) -> None:
        deadline = self._assignment.deadline
        call = self._replica.stub.Generate(self._assignment.request, timeout=deadline.remaining_s())
        try:
            async for frame in call:
                await self._take(frame)
        finally:
            call.cancel()

    async def _take(self, frame: llm_service_pb2.GenerateResponse) -> None:
        if frame.HasField("media_needed"):
            for key in frame.media_needed.keys:
                self._deliveries.start(key)
            return
        self._started = True
        if frame.HasField("finish"):
            self._unfinished -= 1
            if frame.finish.HasField("last_delta"):
                await self._frames.put(llm_service_pb2.GenerateResponse(delta=frame.finish.last_delta))
        await self._frames.put(frame)
        if not self._unfinished:
            self._frames.close()

    def _explain(self, error: PerceptError) -> Exception:
        error.param = to_request_param(error.param, self._assignment.items, self._assignment.names)
        if not self._started and isinstance(error, UnavailableError | OverloadedError):
            return _ReplicaRefused(error)
        return error


class _Deliveries:
    """The running deliveries of one attempt, one for each key."""

    def __init__(
        self, group: asyncio.TaskGroup, encoding: Encoding, address: str, assignment: Assignment
    ) -> None:
        self._group = group
        self._encoding = encoding
        self._address = address
        self._deadline = assignment.deadline
        self._items: Mapping[str, ResolvedItem] = {item.item.key: item for item in reversed(assignment.items)}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asked_again: set[str] = set()

    def start(self, key: str) -> None:
        """Has an item delivered. Asked for again meanwhile, it goes once more afterwards:
        its rows may have been evicted before they were used."""
        if key not in self._items:
            raise InternalError("the LLM service asked for an item that the request does not have")
        if key in self._running:
            self._asked_again.add(key)
            return
        self._running[key] = self._group.create_task(self._deliver(key))

    def cancel(self) -> None:
        """Ends what still runs; nobody waits for it any more."""
        for task in self._running.values():
            task.cancel()

    async def _deliver(self, key: str) -> None:
        try:
            while True:
                self._asked_again.discard(key)
                await self._encoding.deliver(self._items[key], self._address, self._deadline)
                if key not in self._asked_again:
                    return
        finally:
            del self._running[key]
