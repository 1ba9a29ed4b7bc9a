"""POST /v1/completions, streamed and whole: prompts in the model's own format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.answers import AnswerHead
from gateway.completion_answers import TextChunkWriter, TextCollector
from gateway.completion_schema import CompletionRequest, parse_completion_request
from gateway.description import ANSWER_RESPONSE, ERROR_RESPONSES, json_body
from gateway.errors import json_response
from gateway.parts import Gateway
from gateway.raw_prompts import RawPrompt, raw_prompts, to_raw_request
from gateway.sse import EventStreamResponse, while_connected
from gateway.together import together
from gateway.work import Asked, PlainRoute, Work

router = APIRouter(tags=["completions"], route_class=PlainRoute)

Json = dict[str, Any]

# Prompts of one request that are with the LLM services at a time: the others' clients want answers too.
_AT_ONCE = 16


@router.post(
    "/v1/completions",
    responses={**ERROR_RESPONSES, **ANSWER_RESPONSE},
    openapi_extra={"requestBody": json_body(CompletionRequest)},
)
async def create_completion(request: Request) -> Response:
    """Continues text or tokens as they stand, with media in the places of their placeholders."""
    gateway: Gateway = request.app.state.gateway
    work = Work(gateway, request)
    asked = parse_completion_request(await work.read_body(request))
    head = work.head("cmpl", asked.model, asked.request_id)
    completion = _Completion(gateway, work, asked, head, raw_prompts(asked))
    if not asked.stream:
        return json_response(await while_connected(request.receive, completion.whole()))
    return EventStreamResponse(completion.chunks())


@dataclass(frozen=True, slots=True)
class _Completion:
    """One request's prompts, answered together."""

    gateway: Gateway
    work: Work
    request: CompletionRequest
    head: AnswerHead
    prompts: Sequence[RawPrompt]

    async def whole(self) -> Json:
        echoes, count = await self._echoes(), self.request.n or 1
        with_logprobs = self.request.logprobs is not None
        collector = TextCollector(self.head, echoes, count, with_logprobs=with_logprobs)
        async with aclosing(self._frames()) as frames:
            async for batch in frames:
                for prompt, frame in batch:
                    collector.take(prompt, frame)
        return collector.whole()

    async def chunks(self) -> AsyncGenerator[list[Json], None]:
        """The chunks that can be sent at once, time after time."""
        echoes, count = await self._echoes(), self.request.n or 1
        options = self.request.stream_options
        with_usage = bool(options and options.include_usage)
        writer = TextChunkWriter(self.head, echoes, count, with_usage=with_usage)
        chunks = list(writer.opening())
        async with aclosing(self._frames()) as frames:
            async for batch in frames:
                for prompt, frame in batch:
                    chunks += writer.take(prompt, frame)
                if chunks:
                    yield chunks
                chunks = []
        if last := list(writer.usage()):
            yield last

    def _frames(self) -> AsyncGenerator[list[tuple[int, Any]], None]:
        sources = [self.work.frames(partial(self._asked, prompt)) for prompt in self.prompts]
        return together(sources, _AT_ONCE)

    def _asked(self, prompt: RawPrompt) -> Asked:
        request, max_model_len = self.request, self.gateway.model().description.max_model_len
        return Asked(
            media=prompt.media,
            settings=self.gateway.settings_for(request),
            choice_count=request.n or 1,
            max_tokens=request.max_token_count,
            names=prompt.names,
            to_wire=lambda items: to_raw_request(
                request, prompt, items, request_id=self.work.request_id, max_model_len=max_model_len
            ),
        )

    async def _echoes(self) -> list[str]:
        """What stands in front of each prompt's answers: its text where that was asked for, or nothing."""
        if not self.request.echo:
            return [""] * len(self.prompts)
        async with asyncio.timeout(self.work.deadline.remaining_s()):
            return [await self._text(prompt) for prompt in self.prompts]

    async def _text(self, prompt: RawPrompt) -> str:
        if isinstance(prompt.text, str):
            return prompt.text
        return await self.gateway.conductor.text_of(prompt.text, self.work.deadline, prompt.names)
