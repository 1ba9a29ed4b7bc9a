"""The LLM service's short calls: what it serves, how busy it is, tokens of texts.

Knows that any replica answers them alike. Does not generate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from percept.client.replicas import Replicas
from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline
from shared.errors import PerceptError, UnavailableError

if TYPE_CHECKING:
    from protos.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub

T = TypeVar("T")


class Questions:
    """Asks the replicas of LLM services; one that is gone is passed over.

    Every method raises UnavailableError where none answers, or the service's refusal.
    """

    def __init__(self, llms: Replicas[LlmServiceAsyncStub]) -> None:
        self._llms = llms

    async def model(self, deadline: Deadline) -> llm_service_pb2.GetModelResponse:
        """What is served."""
        request = llm_service_pb2.GetModelRequest()
        return await self._first(lambda stub: stub.GetModel(request, timeout=deadline.remaining_s()))

    async def token_ids(self, request: llm_service_pb2.TokenizeRequest, deadline: Deadline) -> list[int]:
        """A prompt's tokens."""
        answer = await self._first(lambda stub: stub.Tokenize(request, timeout=deadline.remaining_s()))
        return list(answer.token_ids)

    async def text(self, request: llm_service_pb2.DetokenizeRequest, deadline: Deadline) -> str:
        """The tokens' text."""
        answer = await self._first(lambda stub: stub.Detokenize(request, timeout=deadline.remaining_s()))
        return answer.text

    async def room(self, deadline: Deadline) -> int:
        """How many requests all replicas that answer accept at once."""
        request = llm_service_pb2.GetStatusRequest()
        room = 0
        for replica in await self._llms.all():
            try:
                with replica.call():
                    status = await replica.stub.GetStatus(request, timeout=deadline.remaining_s())
                room += status.max_pending_request_count
            except UnavailableError:
                continue
        return room

    async def _first(self, ask: Callable[[LlmServiceAsyncStub], Awaitable[T]]) -> T:
        fault: PerceptError = UnavailableError("there is no LLM service")
        for replica in await self._llms.all():
            try:
                with replica.call():
                    return await ask(replica.stub)
            except UnavailableError as error:
                fault = error
        raise fault
