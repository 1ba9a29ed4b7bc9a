"""POST /v1/chat/completions, streamed and whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.answers import AnswerCollector, AnswerHead, ChunkWriter
from gateway.description import ANSWER_RESPONSE, ERROR_RESPONSES, json_body
from gateway.errors import json_response
from gateway.parts import Gateway
from gateway.schemas import ChatCompletionRequest, parse_chat_request
from gateway.sse import EventStreamResponse, while_connected
from gateway.translate import CHAT_NAMES, to_generate_request, to_prompt
from gateway.work import Asked, Frames, PlainRoute, Work
from protos.llm.v1 import llm_service_pb2

router = APIRouter(tags=["chat"], route_class=PlainRoute)

Json = dict[str, Any]


@router.post(
    "/v1/chat/completions",
    responses={**ERROR_RESPONSES, **ANSWER_RESPONSE},
    openapi_extra={"requestBody": json_body(ChatCompletionRequest)},
)
async def create_chat_completion(request: Request) -> Response:
    """Continues a conversation about text, pictures, videos and recordings."""
    gateway: Gateway = request.app.state.gateway
    work = Work(gateway, request)
    chat = parse_chat_request(await work.read_body(request))
    head = work.head("chatcmpl", chat.model, chat.request_id)
    frames = work.frames(partial(_asked, gateway, work, chat))
    if not chat.stream:
        return json_response(await while_connected(request.receive, _whole(frames, chat, head)))
    return EventStreamResponse(_chunks(frames, chat, head))


def _asked(gateway: Gateway, work: Work, chat: ChatCompletionRequest) -> Asked:
    prompt = to_prompt(chat)
    max_model_len = gateway.model().description.max_model_len
    return Asked(
        media=prompt.media,
        settings=gateway.settings_for(chat),
        choice_count=chat.n or 1,
        max_tokens=chat.max_token_count,
        names=CHAT_NAMES,
        to_wire=lambda items: to_generate_request(
            chat, prompt, items, request_id=work.request_id, max_model_len=max_model_len
        ),
    )


async def _whole(frames: Frames, chat: ChatCompletionRequest, head: AnswerHead) -> Json:
    collector = AnswerCollector(head, chat.n or 1, with_logprobs=bool(chat.logprobs))
    usage = llm_service_pb2.Usage()
    async with aclosing(frames):
        async for batch in frames:
            for frame in batch:
                if frame.HasField("delta"):
                    collector.delta(frame.delta)
                else:
                    collector.finish(frame.finish)
                    usage.MergeFrom(frame.finish.usage)
    return collector.whole(usage)


async def _chunks(
    frames: Frames, chat: ChatCompletionRequest, head: AnswerHead
) -> AsyncGenerator[list[Json], None]:
    """The chunks that can be sent at once, time after time."""
    options = chat.stream_options
    writer = ChunkWriter(head, chat.n or 1, with_usage=bool(options and options.include_usage))
    usage = llm_service_pb2.Usage()
    chunks = list(writer.opening())
    async with aclosing(frames):
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
