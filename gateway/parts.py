"""The gateway's parts, made from its settings, started and closed together.

Knows how they are wired. Does not know HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING

from gateway.budget import ByteBudget
from gateway.conductor import Conductor, LlmSet
from gateway.encoding import EncoderSet, Encoding
from gateway.fetch import Fetcher, FetchLimits, Resolver, resolve
from gateway.media import MediaResolver
from gateway.metrics import Metrics
from gateway.replicas import ReplicaSet
from gateway.settings import GatewaySettings
from gateway.version import VERSION
from protos.encoder.v1 import encoder_service_pb2
from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceStub
from protos.llm.v1 import llm_service_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from protos.media.v1 import media_pb2
from shared.errors import UnavailableError, UnknownModelError

if TYPE_CHECKING:
    from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceAsyncStub
    from protos.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub

logger = logging.getLogger(__name__)

_MODEL_TIMEOUT_S = 5.0


async def _ask_llm(stub: LlmServiceAsyncStub) -> llm_service_pb2.GetModelResponse:
    return await stub.GetModel(llm_service_pb2.GetModelRequest(), timeout=_MODEL_TIMEOUT_S)


async def _ask_encoder(stub: EncoderServiceAsyncStub) -> encoder_service_pb2.GetModelResponse:
    return await stub.GetModel(encoder_service_pb2.GetModelRequest(), timeout=_MODEL_TIMEOUT_S)


class Gateway:
    """Everything that a route may use."""

    def __init__(self, settings: GatewaySettings, resolver: Resolver = resolve) -> None:
        """
        Args:
            settings: what to do and whom to call.
            resolver: looks up the hosts of media URLs.
        """
        self.settings = settings
        self.metrics = Metrics(self._main_name)
        self.budget = ByteBudget(settings.max_held_byte_count)
        self.llms: LlmSet = ReplicaSet(
            "llm", settings.llm, LlmServiceStub, _ask_llm, longest_call_s=settings.deadline_s
        )
        self.encoders: EncoderSet = ReplicaSet(
            "encoder", settings.encoder, EncoderServiceStub, _ask_encoder, longest_call_s=settings.deadline_s
        )
        self._fetcher = Fetcher(_fetch_limits(settings), resolver)
        self.media = MediaResolver(
            self._fetcher,
            max_byte_count=settings.max_media_byte_count,
            folder=settings.allowed_local_media_path,
            stages=self.metrics,
        )
        self.conductor = Conductor(self.llms, Encoding(self.encoders, self.metrics))

    async def start(self) -> None:
        """Looks for the services; they may still be loading."""
        await asyncio.gather(self.llms.start(), self.encoders.start())

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(self.llms.close(), self.encoders.close(), self._fetcher.close())

    def model(self) -> llm_service_pb2.GetModelResponse:
        """What the LLM service serves.

        Raises:
            UnavailableError: none has said so yet.
        """
        model = self.llms.model
        if model is None:
            raise UnavailableError("The model is not ready: no LLM service has answered yet.")
        return model

    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use, the main one first."""
        return self._names(self.model())

    def check_model(self, name: str | None) -> str:
        """Returns the name that the answer carries.

        Raises:
            UnknownModelError: no such model is served.
        """
        names = self.model_names()
        if not name:
            return names[0]
        if name not in names:
            raise UnknownModelError(f"The model `{name[:256]}` does not exist.", param="model")
        return name

    def image_limit(self) -> int | None:
        """Pictures that one prompt may hold; None for any number."""
        if "image" in self.settings.limit_mm_per_prompt:
            return self.settings.limit_mm_per_prompt["image"]
        for limit in self.model().modality_limits:
            if limit.modality == media_pb2.MODALITY_IMAGE:
                return limit.max_item_count
        return None

    def item_limits(self) -> dict[str, int]:
        """Modalities that prompts may hold, and how many items of each."""
        own = {str(modality): count for modality, count in self.settings.limit_mm_per_prompt.items()}
        served = {
            media_pb2.Modality.Name(limit.modality).removeprefix("MODALITY_").lower(): limit.max_item_count
            for limit in self.model().modality_limits
        }
        return {modality: min(count, own.get(modality, count)) for modality, count in served.items()}

    def fingerprint(self) -> str:
        """Names what computes the answers: equal while model and version are."""
        model = self.model()
        text = f"{VERSION}\n{model.family}\n{model.max_model_len}\n{model.vocabulary_size}\n{model.models}"
        return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:10]

    def _main_name(self) -> str:
        model = self.llms.model
        return self._names(model)[0] if model is not None else ""

    def _names(self, model: llm_service_pb2.GetModelResponse) -> tuple[str, ...]:
        return self.settings.served_model_name or tuple(model.models)


def _fetch_limits(settings: GatewaySettings) -> FetchLimits:
    return FetchLimits(
        timeout_s=settings.media_fetch_timeout_s,
        max_byte_count=settings.max_media_byte_count,
        domains=frozenset(domain.lower() for domain in settings.allowed_media_domains),
        private=settings.allow_private_media,
    )
