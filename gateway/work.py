"""One request for text on its way through the gateway: read, its media resolved, conducted, measured.

Knows what every such request has in common: a deadline, the bytes that it holds, a meter
for each prompt. Does not know what routes ask for nor how they answer.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from gateway.access import REQUEST_ID
from gateway.admission import HOLDING
from gateway.answers import AnswerHead, finish_reason
from gateway.body import read_json
from gateway.budget import Holding
from gateway.conductor import Assignment
from gateway.content import MediaPart
from gateway.errors import as_percept_error
from gateway.item_settings import ItemSettings
from gateway.media import ResolvedItem
from gateway.metrics import RequestMeter
from gateway.parts import Gateway
from gateway.translate import affinity, check_items
from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline
from shared.telemetry import Stopwatch

Frames = AsyncGenerator[list[llm_service_pb2.GenerateResponse], None]
"""All frames that have come, time after time."""


class PlainRoute(APIRoute):
    """Calls its endpoint with the request alone: reading, checking and answering are the endpoint's own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, before its media are at hand.

    Attributes:
        media: in order.
        settings: what the items are processed with.
        choice_count: continuations of the prompt.
        max_tokens: of each, where it was said.
        names: what the request calls the wire's fields; see `to_request_param`.
        to_wire: makes the LLM service's request once the items are known.
    """

    media: Sequence[MediaPart]
    settings: ItemSettings
    choice_count: int
    max_tokens: int | None
    names: Mapping[str, str]
    to_wire: Callable[[Sequence[ResolvedItem]], llm_service_pb2.GenerateRequest]


class Work:
    """One HTTP request's way through the gateway."""

    def __init__(self, gateway: Gateway, request: Request) -> None:
        state = request.scope["state"]
        self.request_id: str = state[REQUEST_ID]
        self.holding: Holding = state[HOLDING]
        self.deadline = Deadline.after(gateway.settings.deadline_s)
        self._gateway = gateway
        self._watch = Stopwatch()

    async def read_body(self, request: Request) -> object:
        """Returns the parsed JSON body. A client that is slow to send has the same deadline."""
        async with asyncio.timeout(self.deadline.remaining_s()):
            return await read_json(request, self._gateway.settings.max_body_byte_count, self.holding)

    def head(self, kind: str, model: str | None, request_id: str | None = None) -> AnswerHead:
        """What every object of the answer repeats.

        Args:
            kind: begins the answer's id: "chatcmpl", "cmpl".
            model: the name in the request.
            request_id: the client's own name for the answer.

        Raises:
            UnknownModelError: no such model is served.
        """
        return AnswerHead(
            model=self._gateway.check_model(model),
            id=f"{kind}-{request_id or uuid.uuid4().hex}",
            created=int(time.time()),
            system_fingerprint=self._gateway.model().fingerprint,
        )

    async def frames(self, ask: Callable[[], Asked]) -> Frames:
        """Resolves one prompt's media, has it continued, and measures that.

        Args:
            ask: says what is asked; what it raises counts as the prompt's failure.

        Raises:
            PerceptError: the prompt failed.
        """
        meter = RequestMeter(self._gateway.metrics, self._watch)
        try:
            assignment = await self._assignment(ask(), meter)
            async with self._gateway.conductor.generate(assignment) as frames:
                async for batch in frames:
                    for frame in batch:
                        _measure(frame, meter)
                    yield batch
        except Exception as fault:
            error = as_percept_error(fault)
            meter.fail(error)
            raise error from fault
        except (asyncio.CancelledError, GeneratorExit):
            meter.cancel()
            raise

    async def _assignment(self, asked: Asked, meter: RequestMeter) -> Assignment:
        gateway = self._gateway
        check_items(asked.media, gateway.model().item_limits, asked.names)
        meter.asked(
            choice_count=asked.choice_count,
            max_tokens=asked.max_tokens,
            item_counts=Counter(part.modality for part in asked.media),
        )
        async with asyncio.timeout(self.deadline.remaining_s()):
            items = await gateway.media.resolve_all(asked.media, asked.settings, self.holding.take_media)
        request = asked.to_wire(items)
        return Assignment(request, items, affinity(request), self.deadline, asked.names)


def _measure(frame: llm_service_pb2.GenerateResponse, meter: RequestMeter) -> None:
    if frame.HasField("delta"):
        meter.delta(frame.delta.choice_index, len(frame.delta.token_ids))
        return
    meter.finish(finish_reason(frame.finish))
    if frame.finish.HasField("usage"):
        meter.complete(frame.finish.usage, frame.finish.timings)
