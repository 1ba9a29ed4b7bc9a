"""`LlmService`: the calls of the wire, in terms of the service's parts.

Knows the messages. Does not know how anything is done: prompts, generations
and the engine have their own modules.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import psutil

from llm_service.generation import Generation, GenerationParts
from llm_service.prompt import MAX_REQUEST_ID_LENGTH
from llm_service.sampling import GenerationDefaults, plan_generation
from protos.llm.v1 import llm_service_pb2 as pb
from protos.llm.v1 import llm_service_pb2_grpc as pb_grpc
from protos.media.v1 import media_pb2
from shared.errors import InvalidRequestError, UnknownModelError
from shared.families.base import MAIN_TENSOR, Modality

_WIRE_MODALITIES: Mapping[Modality, media_pb2.Modality.ValueType] = {
    "image": media_pb2.MODALITY_IMAGE,
    "video": media_pb2.MODALITY_VIDEO,
    "audio": media_pb2.MODALITY_AUDIO,
}

# Fields that both the engine's status and the wire's have, under one name.
_ENGINE_FIELDS = (
    "running_sequence_count",
    "waiting_sequence_count",
    "used_block_count",
    "block_count",
    "prefix_query_token_count",
    "prefix_hit_token_count",
    "preemption_count",
    "prompt_token_count",
    "generated_token_count",
    "step_count",
    "step_seconds",
    "item_row_count",
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is served.

    Attributes:
        names: that requests may use, the main one first.
        max_model_len: before the engine has measured what fits.
        tensor_widths: the tensors of an item, in order, and the width of each.
    """

    names: tuple[str, ...]
    family: str
    max_model_len: int
    tensor_widths: Mapping[str, int]
    vocabulary_size: int
    defaults: GenerationDefaults


class LlmServicer(pb_grpc.LlmServiceServicer):
    """Serves one model."""

    def __init__(self, parts: GenerationParts, facts: ModelFacts) -> None:
        self._parts = parts
        self._facts = facts
        self._start_seconds = int(time.time())
        self._process = psutil.Process()

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """Answers with frames until every choice is complete."""
        self._check_model(request.model)
        if len(request.request_id) > MAX_REQUEST_ID_LENGTH:
            raise InvalidRequestError(
                f"request_id has at most {MAX_REQUEST_ID_LENGTH} characters", param="request_id"
            )
        plan = plan_generation(request, self._facts.defaults, self._facts.vocabulary_size)
        async with aclosing(Generation(self._parts, request, plan).frames()) as frames:
            async for frame in frames:
                yield frame

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.TokenizeResponse:
        """Turns a prompt into tokens."""
        self._check_model(request.model)
        max_model_len = self._max_model_len()
        token_ids, texts = await self._parts.prompts.tokenize(request, max_model_len)
        return pb.TokenizeResponse(token_ids=token_ids, token_texts=texts, max_model_len=max_model_len)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DetokenizeResponse:
        """Turns tokens into text."""
        self._check_model(request.model)
        text = await self._parts.prompts.detokenize(request.token_ids, self._max_model_len())
        return pb.DetokenizeResponse(text=text)

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetModelResponse:
        """Tells what is served."""
        return pb.GetModelResponse(
            models=self._facts.names,
            family=self._facts.family,
            max_model_len=self._max_model_len(),
            hidden_size=self._facts.tensor_widths[MAIN_TENSOR],
            vocabulary_size=self._facts.vocabulary_size,
            start_seconds=self._start_seconds,
            modality_limits=list(_limits(self._parts.prompts.item_limits)),
        )

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStatusResponse:
        """Tells load and counters."""
        engine, store = self._parts.engine, self._parts.store
        answer = pb.GetStatusResponse(
            pending_request_count=self._parts.admission.count,
            max_pending_request_count=self._parts.admission.max_count,
            embedding_byte_count=store.used_byte_count,
            max_embedding_byte_count=store.budget,
            engine_start_count=engine.start_count,
            resident_byte_count=self._process.memory_info().rss,
        )
        if engine.ready is not None:
            answer.block_count = engine.ready.block_count
            answer.engine_resident_byte_count = engine.ready.resident_byte_count
        if engine.status is not None:
            for name in _ENGINE_FIELDS:
                setattr(answer, name, getattr(engine.status, name))
            answer.engine_resident_byte_count = engine.status.resident_byte_count
        return answer

    def _max_model_len(self) -> int:
        ready = self._parts.engine.ready
        return ready.max_model_len if ready is not None else self._facts.max_model_len

    def _check_model(self, model: str) -> None:
        if model and model not in self._facts.names:
            raise UnknownModelError(f"The model `{model[:128]}` does not exist.", param="model")


def _limits(item_limits: Mapping[Modality, int]) -> Iterable[pb.ModalityLimit]:
    for modality, limit in item_limits.items():
        yield pb.ModalityLimit(modality=_WIRE_MODALITIES[modality], max_item_count=limit)
