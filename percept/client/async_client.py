"""The client for programs with an event loop. `sync_client.py` has the same for those without.

Knows the two services' calls and puts the client's parts together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from percept.client.answers import Answer, AnswerCollector
from percept.client.batch import run_batch
from percept.client.beside_pictures import has_both, settled
from percept.client.conducting import Conducting, Take, llm_replicas
from percept.client.encoding import pause
from percept.client.encoding_client import MOST_AT_ONCE, EncodingClient
from percept.client.items import Item, ItemSettings
from percept.client.media import items_of
from percept.client.messages import Message, build_conversation
from percept.client.prompts import Prompt, build_prompt, new_request
from percept.client.questions import Questions
from percept.client.sampling import SamplingParams
from percept.client.served import ServedModel
from percept.client.stream import DeltaStream
from percept.client.transcribing import TranscribeOptions, Transcriber, TranscribeWishes
from percept.client.transcript import Transcript
from percept.client.transcript_stream import TranscriptStream
from protos.llm.v1 import llm_service_pb2
from shared.deadline import Deadline
from shared.errors import InvalidRequestError, PerceptError, UnavailableError
from shared.rpc.addresses import checked_address

if TYPE_CHECKING:
    pass

DEFAULT_ENCODER = "127.0.0.1:50051"
DEFAULT_LLM = "127.0.0.1:50052"
DEFAULT_TIMEOUT_S = 600.0

_LOOK_INTERVAL_S = 0.25
_PIECES_AT_ONCE = 8
"""Pieces of one recording, where nobody says otherwise."""

Addresses = str | Sequence[str]


class AsyncClient(EncodingClient):
    """Talks to encoder and LLM services over gRPC, without a gateway.

    Answers, errors and arguments are those of `Client`. Belongs to the event loop that it is
    first used in.
    """

    def __init__(
        self,
        *,
        encoder: Addresses = DEFAULT_ENCODER,
        llm: Addresses = DEFAULT_LLM,
        model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_concurrency: int | None = None,
        delivery_address: str | None = None,
    ) -> None:
        """See `Client`."""
        super().__init__(_addresses(encoder, "encoder"), timeout_s, max_concurrency)
        llms = llm_replicas(_addresses(llm, "llm"))
        if delivery_address is not None and len(_addresses(llm, "llm")) > 1:
            raise InvalidRequestError("a delivery address is one LLM service's", param="delivery_address")
        self._llms = llms
        self._questions = Questions(llms)
        self._conducting = Conducting(llms, self._encoding, delivery_address)
        self._transcriber = Transcriber(self._conducting, self._encoding, model)
        self._model = model

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes every connection; calls that still run fail with UnavailableError."""
        await asyncio.gather(self._encoders.close(), self._llms.close())

    @overload
    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> list[Answer]: ...

    @overload
    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: bool,
        timeout_s: float | None = None,
    ) -> list[Answer | PerceptError]: ...

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer] | list[Answer | PerceptError]:
        """See `Client.generate`."""
        single = isinstance(prompts, str | Mapping)
        given: Sequence[Prompt] = [cast(Prompt, prompts)] if single else cast(Sequence[Prompt], prompts)
        chosen = _one_for_each(sampling, len(given))

        async def answer(index: int) -> Answer:
            try:
                return await self._answer(given[index], chosen[index], timeout_s)
            except PerceptError as error:
                if not single:
                    error.param = f"prompts[{index}]" + (f".{error.param}" if error.param else "")
                raise

        return await run_batch(
            len(given),
            answer,
            concurrency=await self._concurrency(len(given)),
            title="prompts" if progress and not single else None,
            return_errors=return_errors,
        )

    async def _answer(self, prompt: Prompt, sampling: SamplingParams, timeout_s: float | None) -> Answer:
        deadline = self._deadline(timeout_s)
        request, items = await asyncio.to_thread(build_prompt, prompt, sampling, self._model)
        return await self._collect(request, items, deadline)

    async def _collect(
        self, request: llm_service_pb2.GenerateRequest, items: Sequence[Item], deadline: Deadline
    ) -> Answer:
        collector = AnswerCollector(request)

        async def take(frame: llm_service_pb2.GenerateResponse) -> None:
            collector.take(frame)

        await self._generate(request, items, deadline, take)
        return collector.answer

    async def _generate(
        self, request: llm_service_pb2.GenerateRequest, items: Sequence[Item], deadline: Deadline, take: Take
    ) -> None:
        if has_both(items):
            model = await self._questions.model(deadline)
            items = await asyncio.to_thread(settled, items, ServedModel.from_wire(model).facts)
            del request.media[:]
            request.media.extend(item.wire for item in items)
        await self._conducting.generate(request, items, deadline, take)

    @overload
    async def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> Answer: ...

    @overload
    async def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[True],
        timeout_s: float | None = None,
    ) -> DeltaStream: ...

    async def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
        timeout_s: float | None = None,
    ) -> Answer | DeltaStream:
        """See `Client.complete`; the stream is an asynchronous iterator."""
        deadline = self._deadline(timeout_s)
        chosen = sampling or SamplingParams()
        request, items = await asyncio.to_thread(build_prompt, prompt, chosen, self._model)
        if stream:
            return self._streamed(request, items, deadline)
        return await self._collect(request, items, deadline)

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Answer: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: Literal[True],
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> DeltaStream: ...

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> Answer | DeltaStream:
        """See `Client.chat`; the stream is an asynchronous iterator."""
        deadline = self._deadline(timeout_s)
        settings = ItemSettings(mm_processor_kwargs, media_io_kwargs)
        conversation, items = await asyncio.to_thread(build_conversation, messages, settings)
        conversation.continue_final_message = continue_final_message
        if add_generation_prompt is not None:
            conversation.add_generation_prompt = add_generation_prompt
        request = new_request(sampling or SamplingParams(), self._model)
        request.conversation.CopyFrom(conversation)
        request.media.extend(item.wire for item in items)
        if stream:
            return self._streamed(request, items, deadline)
        return await self._collect(request, items, deadline)

    def _streamed(
        self, request: llm_service_pb2.GenerateRequest, items: Sequence[Item], deadline: Deadline
    ) -> DeltaStream:
        return DeltaStream(
            AnswerCollector(request),
            lambda receive: self._generate(request, items, deadline, receive),
        )

    @overload
    async def transcribe(
        self, recording: Any, *, stream: Literal[False] = False, **options: Unpack[TranscribeOptions]
    ) -> Transcript: ...

    @overload
    async def transcribe(
        self, recording: Any, *, stream: Literal[True], **options: Unpack[TranscribeOptions]
    ) -> TranscriptStream: ...

    async def transcribe(
        self, recording: Any, *, stream: bool = False, **options: Unpack[TranscribeOptions]
    ) -> Transcript | TranscriptStream:
        """See `Client.transcribe`; the stream is an asynchronous iterator, whose `transcript` is the whole
        once it has ended."""
        wishes = TranscribeWishes(**options)
        deadline = self._deadline(wishes.timeout_s)
        items = await asyncio.to_thread(items_of, recording, "audio", "", "recording")
        if len(items) != 1:
            raise InvalidRequestError(f"{len(items)} recordings were given", param="recording")
        facts = ServedModel.from_wire(await self._questions.model(deadline)).facts
        question = wishes.question(facts, stream=stream)
        sampling = SamplingParams(seed=wishes.seed).sampling_to_wire()
        asked = (items[0], question, sampling, deadline, self._max_concurrency or _PIECES_AT_ONCE)
        if stream:
            return TranscriptStream(question, lambda: self._transcriber.opened(*asked))
        return await self._transcriber.transcribe(*asked)

    async def tokenize(self, prompt: str | Sequence[Message], *, timeout_s: float | None = None) -> list[int]:
        """See `Client.tokenize`."""
        request = llm_service_pb2.TokenizeRequest(model=self._model)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            conversation, _ = await asyncio.to_thread(build_conversation, prompt, ItemSettings())
            request.conversation.CopyFrom(conversation)
        return await self._questions.token_ids(request, self._deadline(timeout_s))

    async def detokenize(self, token_ids: Sequence[int], *, timeout_s: float | None = None) -> str:
        """See `Client.detokenize`."""
        request = llm_service_pb2.DetokenizeRequest(model=self._model, token_ids=token_ids)
        return await self._questions.text(request, self._deadline(timeout_s))

    async def model(self, *, timeout_s: float | None = None) -> ServedModel:
        """See `Client.model`."""
        return ServedModel.from_wire(await self._questions.model(self._deadline(timeout_s)))

    async def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """See `Client.wait_until_ready`."""
        deadline = Deadline.after(timeout_s)
        while True:
            try:
                await self.model(timeout_s=deadline.remaining_s())
                await self._encoding.model(deadline)
                return
            except UnavailableError:
                await pause(_LOOK_INTERVAL_S, deadline)

    async def _concurrency(self, count: int) -> int:
        """How many prompts run at once: as many as the LLM services accept."""
        if self._max_concurrency is not None or count < 2:
            return self._max_concurrency or 1
        return max(1, min(MOST_AT_ONCE, await self._questions.room(self._deadline(None))))


def _addresses(given: Addresses, param: str) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else tuple(given)
    try:
        return tuple(checked_address(address, lowest_port=1) for address in addresses)
    except ValueError as error:
        raise InvalidRequestError(str(error), param=param) from None


def _one_for_each(
    sampling: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * count
    if len(sampling) != count:
        raise InvalidRequestError(
            f"there are {len(sampling)} sampling parameters for {count} prompts", param="sampling"
        )
    return sampling
