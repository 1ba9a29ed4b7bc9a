"""Real gRPC servers that speak the wire contract by a script instead of a model.

They prove what the gateway says and understands on the wire, and let a test choose
when a service is slow, full, wrong or gone. Used by the gateway's tests alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from gateway.fetch import Resolver, resolve
from gateway.parts import Gateway
from gateway.service import build_server
from gateway.settings import GatewaySettings
from protos.encoder.v1 import encoder_service_pb2 as encoder_pb2
from protos.encoder.v1 import encoder_service_pb2_grpc as encoder_grpc
from protos.llm.v1 import embedding_service_pb2, embedding_service_pb2_grpc, llm_service_pb2_grpc
from protos.llm.v1 import llm_service_pb2 as llm_pb2
from protos.media.v1 import media_pb2
from protos.tensor.v1 import tensor_pb2
from shared.content_key import content_key
from shared.errors import InvalidRequestError, PerceptError, UnavailableError
from shared.rpc.channel import open_channel
from shared.rpc.server import RunningServer, ServiceRegistration
from shared.rpc.server import build_server as build_rpc_server

LLM_NAME = "protos.llm.v1.LlmService"
EMBEDDING_NAME = "protos.llm.v1.EmbeddingService"
ENCODER_NAME = "protos.encoder.v1.EncoderService"


@dataclass
class ScriptedLlm(
    llm_service_pb2_grpc.LlmServiceServicer, embedding_service_pb2_grpc.EmbeddingServiceServicer
):
    """Answers each choice with `words`, once the media has been delivered.

    `linger_s` passes between the last frame and the call's status.
    """

    words: Sequence[str] = ("Hel", "lo", "!")
    words_for: Callable[[llm_pb2.GenerateRequest], Sequence[str]] | None = None
    measures_for: Callable[[llm_pb2.GenerateRequest], llm_pb2.SpeechMeasures] | None = None
    pause_s: float = 0.0
    linger_s: float = 0.0
    refuse_with: PerceptError | None = None
    refuse_after: int = 0
    refuse_times: int = 1_000_000
    fail_with: PerceptError | None = None
    fail_after: int = 0
    vanish: bool = False
    ask_twice: bool = False
    family: str = "qwen2_vl"
    limits: Mapping[int, int] = field(default_factory=lambda: {media_pb2.MODALITY_IMAGE: 8})
    requests: list[llm_pb2.GenerateRequest] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    address: str = ""
    _arrived: dict[str, asyncio.Event] = field(default_factory=dict)

    async def Generate(self, request: llm_pb2.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async for frame in self._answer(request):
                yield frame
        finally:
            self.running -= 1

    async def _answer(self, request: llm_pb2.GenerateRequest) -> AsyncIterator[llm_pb2.GenerateResponse]:
        if self.refuse_with is not None and self.refuse_times > 0 and len(self.requests) > self.refuse_after:
            self.refuse_times -= 1
            raise self.refuse_with
        keys = list(dict.fromkeys(item.key for item in request.media))
        missing = [key for key in keys if not self._event(key).is_set()]
        if missing:
            yield _needed(missing)
            if self.ask_twice:
                yield _needed(missing)
        for key in keys:
            await self._event(key).wait()
        if missing:
            # A prefill takes longer than the encoder needs to tell how long it took itself.
            await asyncio.sleep(0.02)
        choice_count = request.sampling.choice_count or 1
        words = self.words if self.words_for is None else self.words_for(request)
        for index, word in enumerate(words):
            if self.fail_with is not None and index >= self.fail_after:
                raise self.fail_with
            await asyncio.sleep(self.pause_s)
            for choice in range(choice_count):
                if not (request.deltas_may_wait and index == len(self.words) - 1):
                    yield llm_pb2.GenerateResponse(delta=self._delta(request, choice, index, word))
        for choice in range(choice_count):
            yield self._finish(request, choice, last=choice == choice_count - 1)
        await asyncio.sleep(self.linger_s)

    def _delta(self, request: llm_pb2.GenerateRequest, choice: int, index: int, word: str) -> llm_pb2.Delta:
        delta = llm_pb2.Delta(choice_index=choice, text=word, token_ids=[index])
        if request.HasField("top_logprobs"):
            chosen = _alternative(index, word, -0.5)
            others = [_alternative(index + n, f"{word}{n}", -0.5 - n) for n in range(request.top_logprobs)]
            delta.logprobs.add(chosen=chosen, top=others)
        return delta

    def _finish(
        self, request: llm_pb2.GenerateRequest, choice: int, *, last: bool
    ) -> llm_pb2.GenerateResponse:
        finish = llm_pb2.Finish(choice_index=choice, reason=llm_pb2.FINISH_REASON_STOP)
        if request.speech_measures and self.measures_for is not None:
            finish.speech_measures.CopyFrom(self.measures_for(request))
        if request.stopping.stop_strings:
            finish.stop_string = request.stopping.stop_strings[0]
        if request.deltas_may_wait and self.words:
            index = len(self.words) - 1
            finish.last_delta.CopyFrom(self._delta(request, choice, index, self.words[index]))
        if last:
            count = (request.sampling.choice_count or 1) * len(self.words)
            finish.usage.CopyFrom(
                llm_pb2.Usage(
                    prompt_token_count=10,
                    completion_token_count=count,
                    cached_token_count=4,
                    image_token_count=3 * _count(request, media_pb2.MODALITY_IMAGE),
                    video_token_count=3 * _count(request, media_pb2.MODALITY_VIDEO),
                    audio_token_count=3 * _count(request, media_pb2.MODALITY_AUDIO),
                )
            )
            finish.timings.CopyFrom(
                llm_pb2.Timings(queue_seconds=0.01, prefill_seconds=0.02, decode_seconds=0.3)
            )
        return llm_pb2.GenerateResponse(finish=finish)

    def _event(self, key: str) -> asyncio.Event:
        return self._arrived.setdefault(key, asyncio.Event())

    async def PutEmbeddings(self, request_iterator: Any, context: Any) -> Any:
        key = ""
        async for frame in request_iterator:
            if frame.HasField("header"):
                key = frame.header.key
        self.delivered.append(key)
        self._event(key).set()
        return embedding_service_pb2.PutEmbeddingsResponse(stored=True)

    async def GetModel(self, request: Any, context: Any) -> llm_pb2.GetModelResponse:
        limits = [
            llm_pb2.ModalityLimit(modality=modality, max_item_count=count)  # type: ignore[arg-type]
            for modality, count in self.limits.items()
        ]
        return llm_pb2.GetModelResponse(
            models=["tiny", "org/tiny"],
            family=self.family,
            max_model_len=512,
            hidden_size=8,
            vocabulary_size=100,
            start_seconds=1_700_000_000,
            modality_limits=limits,
        )

    async def GetStatus(self, request: Any, context: Any) -> llm_pb2.GetStatusResponse:
        return llm_pb2.GetStatusResponse(
            running_sequence_count=self.running, used_block_count=3, block_count=12, generated_token_count=7
        )


def _count(request: llm_pb2.GenerateRequest, modality: int) -> int:
    return sum(item.modality == modality for item in request.media)


def _needed(keys: list[str]) -> llm_pb2.GenerateResponse:
    return llm_pb2.GenerateResponse(media_needed=llm_pb2.MediaNeeded(keys=keys))


def _alternative(token_id: int, text: str, logprob: float) -> llm_pb2.TokenLogprob.Alternative:
    return llm_pb2.TokenLogprob.Alternative(token_id=token_id, text=text, raw=text.encode(), logprob=logprob)


@dataclass
class ScriptedEncoder(encoder_grpc.EncoderServiceServicer):
    """Takes a payload, checks its key, and pushes an empty row to the LLM."""

    pause_s: float = 0.0
    refuse_with: PerceptError | None = None
    fail_with: PerceptError | None = None
    fail_times: int = 1_000_000
    refuse_upload_with: PerceptError | None = None
    piece_count: int = 1
    split: list[bytes] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    payloads: dict[str, bytes] = field(default_factory=dict)
    running: int = 0
    address: str = ""

    async def Encode(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.running += 1
        try:
            async for frame in self._encode(aiter(request_iterator)):
                yield frame
        finally:
            self.running -= 1

    async def SplitAudio(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """Cuts nothing: gives `piece_count` pieces of a second each, which hold their number."""
        frames = aiter(request_iterator)
        header = (await anext(frames)).header
        if self.refuse_with is not None:
            raise self.refuse_with
        yield encoder_pb2.SplitAudioResponse(accepted=encoder_pb2.Accepted(payload_wanted=True))
        payload = b"".join([frame.chunk async for frame in frames])
        assert len(payload) == header.byte_count
        self.split.append(payload)
        if self.fail_with is not None:
            raise self.fail_with
        files = [b"piece %d of " % index + payload[:16] for index in range(self.piece_count)]
        layout = [
            encoder_pb2.AudioPiece(
                start_seconds=index, end_seconds=index + 1, byte_count=len(file) if len(files) > 1 else 0
            )
            for index, file in enumerate(files)
        ]
        yield encoder_pb2.SplitAudioResponse(
            pieces=encoder_pb2.AudioPieces(seconds=len(files), pieces=layout)
        )
        if len(files) > 1:
            for file in files:
                yield encoder_pb2.SplitAudioResponse(chunk=file)

    async def _encode(self, frames: Any) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        header = (await anext(frames)).header
        self.started.append(header.item.key)
        if self.refuse_with is not None:
            raise self.refuse_with
        yield encoder_pb2.EncodeResponse(accepted=encoder_pb2.Accepted(payload_wanted=True))
        payload = b""
        async for frame in frames:
            payload += frame.chunk
            if self.refuse_upload_with is not None:
                raise self.refuse_upload_with
        item = header.item
        if content_key(item.modality, item.form, item.settings, payload) != item.key:
            raise InvalidRequestError("the payload does not match its key")
        if len(payload) != header.byte_count:
            raise InvalidRequestError("the payload does not match its size")
        yield encoder_pb2.EncodeResponse(info=media_pb2.MediaInfo(row_count=1))
        await asyncio.sleep(self.pause_s)
        if self.fail_with is not None and self.fail_times > 0:
            self.fail_times -= 1
            raise self.fail_with
        self.payloads[item.key] = payload
        self.encoded.append(item.key)
        await _push(header.delivery_address, item.key)
        trailer = encoder_pb2.EncodeTrailer(
            queue_seconds=0.01, decode_seconds=0.02, encode_seconds=0.03, transfer_seconds=0.04
        )
        yield encoder_pb2.EncodeResponse(trailer=trailer)

    async def GetModel(self, request: Any, context: Any) -> encoder_pb2.GetModelResponse:
        return encoder_pb2.GetModelResponse(model="tiny", family="qwen2_vl", hidden_size=8)

    async def GetStatus(self, request: Any, context: Any) -> encoder_pb2.GetStatusResponse:
        return encoder_pb2.GetStatusResponse(cache_hit_count=2, cache_miss_count=3)


async def _push(address: str, key: str) -> None:
    tensor = tensor_pb2.TensorHeader(name="embeds", data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1])
    header = media_pb2.EmbeddingsHeader(key=key, info=media_pb2.MediaInfo(row_count=1), tensors=[tensor])
    frames = [
        embedding_service_pb2.PutEmbeddingsRequest(header=header),
        embedding_service_pb2.PutEmbeddingsRequest(chunk=tensor_pb2.TensorChunk(data=b"\0\0\0\0")),
    ]
    async with open_channel(address) as channel:
        stub: Any = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
        try:
            await stub.PutEmbeddings(iter(frames), timeout=5.0)
        except Exception as error:
            raise UnavailableError("the delivery target is gone") from error


async def start_llm(llm: ScriptedLlm, address: str = "127.0.0.1:0") -> RunningServer:
    """Serves a scripted LLM; its address is noted in it."""
    server = build_rpc_server(
        [
            ServiceRegistration(
                LLM_NAME, lambda s: llm_service_pb2_grpc.add_LlmServiceServicer_to_server(llm, s)
            ),
            ServiceRegistration(
                EMBEDDING_NAME,
                lambda s: embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(llm, s),
            ),
        ],
        default_deadline_s=30.0,
        max_concurrent_calls=1000,
    )
    llm.address = f"127.0.0.1:{await server.start(address)}"
    await server.serving()
    return server


async def start_encoder(encoder: ScriptedEncoder, address: str = "127.0.0.1:0") -> RunningServer:
    """Serves a scripted encoder; its address is noted in it."""
    registration = ServiceRegistration(
        ENCODER_NAME, lambda s: encoder_grpc.add_EncoderServiceServicer_to_server(encoder, s)
    )
    server = build_rpc_server([registration], default_deadline_s=30.0, max_concurrent_calls=1000)
    encoder.address = f"127.0.0.1:{await server.start(address)}"
    await server.serving()
    return server


@dataclass
class Stack:
    """A running gateway with scripted services behind it."""

    url: str
    gateway: Gateway
    llms: list[ScriptedLlm]
    encoders: list[ScriptedEncoder]
    servers: dict[str, RunningServer]

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return self.url + "/v1"

    async def kill(self, address: str) -> None:
        """Ends a service at once, its calls unanswered."""
        await self.servers[address].drain(0)


@asynccontextmanager
async def running_stack(
    llms: Sequence[ScriptedLlm] | None = None,
    encoders: Sequence[ScriptedEncoder] | None = None,
    *,
    resolver: Resolver = resolve,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """Runs scripted services and a real HTTP gateway on loopback ports."""
    llms = [ScriptedLlm()] if llms is None else list(llms)
    encoders = [ScriptedEncoder()] if encoders is None else list(encoders)
    async with AsyncExitStack() as exits:
        servers: dict[str, RunningServer] = {}
        for llm in llms:
            server = servers[llm.address] = await start_llm(llm)
            servers[llm.address] = server
            exits.push_async_callback(server.drain, 0)
        for encoder in encoders:
            server = await start_encoder(encoder)
            servers[encoder.address] = server
            exits.push_async_callback(server.drain, 0)
        full = GatewaySettings(
            **{
                "listen": "127.0.0.1:0",
                "llm": tuple(llm.address for llm in llms) or ("127.0.0.1:9",),
                "encoder": tuple(encoder.address for encoder in encoders),
                **settings,
            }
        )
        gateway = Gateway(full, resolver)
        server = build_server(gateway, full)
        port = await _start(server, exits)
        await until(
            lambda: len(gateway.llms.serving) == len(llms) and len(gateway.encoders.serving) == len(encoders)
        )
        yield Stack(f"http://127.0.0.1:{port}", gateway, list(llms), list(encoders), servers)


async def _start(server: uvicorn.Server, exits: AsyncExitStack) -> int:
    serving = asyncio.create_task(server.serve())

    async def stop() -> None:
        server.should_exit = True
        await serving

    exits.push_async_callback(stop)
    while not server.started:
        await asyncio.sleep(0.01)
        if serving.done():
            serving.result()
    return int(server.servers[0].sockets[0].getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until a condition holds; raises TimeoutError when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
