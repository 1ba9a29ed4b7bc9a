"""POST /v1/chat/completions, streamed and whole."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from gateway.access import REQUEST_ID
from gateway.admission import HOLDING
from gateway.answers import AnswerCollector, AnswerHead, ChunkWriter, finish_reason
from gateway.body import read_json
from gateway.budget import Holding
from gateway.conductor import Assignment
from gateway.description import ANSWER_RESPONSE, ERROR_RESPONSES, json_body
from gateway.errors import as_percept_error, json_response
from gateway.metrics import RequestMeter
from gateway.parts import Gateway
from gateway.schemas import ChatCompletionRequest, parse_chat_request
from gateway.sse import EventStreamResponse, while_connected
from gateway.translate import affinity, check_items, to_generate_request, to_prompt
from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline


class _PlainRoute(APIRoute):
    """Calls its endpoint with the request alone: reading, checking and answering are the endpoint's own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(tags=["chat"], route_class=_PlainRoute)

Frames = AsyncGenerator[list[llm_service_pb2.GenerateResponse], None]
"""All frames that have come, time after time."""

Json = dict[str, Any]


@router.post(
    "/v1/chat/completions",
    responses={**ERROR_RESPONSES, **ANSWER_RESPONSE},
    openapi_extra={"requestBody": json_body(ChatCompletionRequest)},
)
async def create_chat_completion(request: Request) -> Response:
    """Continues a conversation about text, pictures and videos."""
    gateway: Gateway = request.app.state.gateway
    state = request.scope["state"]
    work = _Work(gateway, state[REQUEST_ID], state[HOLDING])
    body = await work.read_body(request)
    chat = parse_chat_request(body)
    head = work.head(chat)
    if not chat.stream:
        return json_response(await while_connected(request.receive, _whole(work, chat, head)))
    return EventStreamResponse(_chunks(work, chat, head))


class _Work:
    """One request's way through the gateway."""

    def __init__(self, gateway: Gateway, request_id: str, holding: Holding) -> None:
        self._gateway = gateway
        self._holding = holding
        self._request_id = request_id
        self._meter = RequestMeter(gateway.metrics)
        self._deadline = Deadline.after(gateway.settings.deadline_s)

    async def read_body(self, request: Request) -> object:
        """Returns the parsed body. A client that is slow to send has the same deadline."""
        async with asyncio.timeout(self._deadline.remaining_s()):
            return await read_json(request, self._gateway.settings.max_body_byte_count, self._holding)

    def head(self, chat: ChatCompletionRequest) -> AnswerHead:
        """What every object of the answer repeats.

        Raises:
            UnknownModelError: the request names another model.
        """
        model = self._gateway.check_model(chat.model)
        return AnswerHead(
            id=f"chatcmpl-{chat.request_id or uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            system_fingerprint=self._gateway.fingerprint(),
        )

    async def frames(self, chat: ChatCompletionRequest) -> Frames:
        """Resolves the media, has the answer generated, and measures it.

        Raises:
            PerceptError: the request failed.
        """
        try:
            assignment = await self._assignment(chat)
            async with self._gateway.conductor.generate(assignment) as frames:
                async for batch in frames:
                    for frame in batch:
                        self._measure(frame)
                    yield batch
        except Exception as fault:
            error = as_percept_error(fault)
            self._meter.fail(error)
            raise error from fault
        except (asyncio.CancelledError, GeneratorExit):
            self._meter.cancel()
            raise

    async def _assignment(self, chat: ChatCompletionRequest) -> Assignment:
        gateway = self._gateway
        prompt = to_prompt(chat)
        check_items(prompt.media, gateway.item_limits())
        settings = gateway.settings_for(chat)
        self._meter.asked(
            choice_count=chat.n or 1,
            max_tokens=chat.max_token_count,
            item_counts=Counter(part.modality for part in prompt.media),
        )
        async with asyncio.timeout(self._deadline.remaining_s()):
            items = await gateway.media.resolve_all(prompt.media, settings, self._holding.take_media)
        request = to_generate_request(
            chat, prompt, items, request_id=self._request_id, max_model_len=gateway.model().max_model_len
        )
        return Assignment(request, items, affinity(request), self._deadline)

    def _measure(self, frame: llm_service_pb2.GenerateResponse) -> None:
        if frame.HasField("delta"):
            self._meter.delta(frame.delta.choice_index)
            return
        self._meter.finish(finish_reason(frame.finish))
        if frame.finish.HasField("usage"):
            self._meter.complete(frame.finish.usage, frame.finish.timings)


async def _whole(work: _Work, chat: ChatCompletionRequest, head: AnswerHead) -> Json:
    collector = AnswerCollector(head, chat.n or 1, with_logprobs=bool(chat.logprobs))
    usage = llm_service_pb2.Usage()
    async with aclosing(work.frames(chat)) as frames:
        async for batch in frames:
            for frame in batch:
                if frame.HasField("delta"):
                    collector.delta(frame.delta)
                else:
                    collector.finish(frame.finish)
                    usage.MergeFrom(frame.finish.usage)
    return collector.whole(usage)


async def _chunks(
    work: _Work, chat: ChatCompletionRequest, head: AnswerHead
) -> AsyncGenerator[list[Json], None]:
    """The chunks that can be sent at once, time after time."""
    options = chat.stream_options
    writer = ChunkWriter(head, chat.n or 1, with_usage=bool(options and options.include_usage))
    usage = llm_service_pb2.Usage()
    chunks = list(writer.opening())
    async with aclosing(work.frames(chat)) as frames:
        async for batch in frames:
            for frame in batch:
                chunks += _written(writer, frame)
                usage.MergeFrom(frame.finish.usage)
            if chunks:
                yield chunks
            chunks = []
    if last := list(writer.usage(usage)):
        yield last


def _written(writer: ChunkWriter, frame: llm_service_pb2.GenerateResponse) -> Iterable[Json]:
    return writer.delta(frame.delta) if frame.HasField("delta") else writer.finish(frame.finish)
