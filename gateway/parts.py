"""The gateway's parts, made from its settings, started and closed together.

Knows how they are wired. Does not know HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gateway.budget import ByteBudget
from gateway.conductor import Conductor, LlmSet
from gateway.encoding import EncoderSet, Encoding
from gateway.fetch import Fetcher, FetchLimits, Resolver, SourceLimits, resolve
from gateway.generation_request import GenerationRequest
from gateway.item_settings import ItemSettings, unknown_names
from gateway.media import MediaResolver
from gateway.metrics import Metrics
from gateway.replicas import ReplicaSet
from gateway.served_model import ServedModel
from gateway.settings import GatewaySettings
from protos.encoder.v1 import encoder_service_pb2
from protos.encoder.v1.encoder_service_pb2_grpc import EncoderServiceStub
from protos.llm.v1 import llm_service_pb2
from protos.llm.v1.llm_service_pb2_grpc import LlmServiceStub
from shared.errors import UnavailableError, UnknownModelError
from shared.families.catalogue import FamilyFacts
from shared.settings import ModalityName

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
        self._newest: ServedModel | None = None
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
            limits=_source_limits(settings),
            folder=settings.allowed_local_media_path,
            stages=self.metrics,
        )
        self._item_rules = settings.item_settings
        self._told_of_settings = False
        self.encoding = Encoding(self.encoders, self.metrics)
        self.conductor = Conductor(self.llms, self.encoding)

    async def start(self) -> None:
        """Looks for the services; they may still be loading."""
        await asyncio.gather(self.llms.start(), self.encoders.start())

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(self.llms.close(), self.encoders.close(), self._fetcher.close())

    def model(self) -> ServedModel:
        """What the LLM service serves.

        Raises:
            UnavailableError: none has said so yet.
        """
        model = self._served()
        if model is None:
            raise UnavailableError("The model is not ready: no LLM service has answered yet.")
        return model

    def check_model(self, name: str | None) -> str:
        """Returns the name that the answer carries.

        Raises:
            UnknownModelError: no such model is served.
        """
        names = self.model().names
        if not name:
            return names[0]
        if name not in names:
            raise UnknownModelError(f"The model `{name[:256]}` does not exist.", param="model")
        return name

    def settings_for(self, request: GenerationRequest) -> ItemSettings:
        """What the items of a request are processed with.

        Raises:
            InvalidRequestError: settings that the server or the model does not take.
        """
        processor = request.mm_processor_kwargs
        video = request.media_io_kwargs.video_values() if request.media_io_kwargs is not None else None
        if not processor and not video:
            return self.server_settings()
        model = self.model()
        self._tell_of_settings(model.facts)
        return self._item_rules.for_request(processor, video, model.facts)

    def server_settings(self) -> ItemSettings:
        """What items are processed with where a request says nothing about it."""
        model = self.model()
        self._tell_of_settings(model.facts)
        return model.item_settings

    def _tell_of_settings(self, facts: FamilyFacts | None) -> None:
        """Says once, as soon as the model is known, which of the server's settings it does not take."""
        if not self._told_of_settings:
            self._told_of_settings = True
            for name, known in unknown_names(self._item_rules.processor, facts):
                logger.warning(
                    "--mm-processor-kwargs: the model takes no %r, it is left out; there are: %s",
                    name,
                    ", ".join(known) or "none",
                )

    def _main_name(self) -> str:
        model = self._served()
        return model.names[0] if model is not None else ""

    def _served(self) -> ServedModel | None:
        """The model of the newest description; None while there is none."""
        newest, known = self.llms.model, self._newest
        if newest is not None and (known is None or known.description is not newest):
            self._newest = ServedModel.of(newest, self.settings)
        return self._newest


def _source_limits(settings: GatewaySettings) -> dict[ModalityName, SourceLimits]:
    image = SourceLimits(settings.max_media_byte_count, settings.media_fetch_timeout_s)
    video = SourceLimits(settings.max_video_byte_count, settings.video_fetch_timeout_s)
    audio = SourceLimits(settings.max_audio_byte_count, settings.audio_fetch_timeout_s)
    return {"image": image, "video": video, "audio": audio}


def _fetch_limits(settings: GatewaySettings) -> FetchLimits:
    return FetchLimits(
        timeout_s=settings.media_fetch_timeout_s,
        max_byte_count=settings.max_media_byte_count,
        domains=frozenset(domain.lower() for domain in settings.allowed_media_domains),
        private=settings.allow_private_media,
    )
