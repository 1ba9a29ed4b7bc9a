"""The LLM service from its start to its drained end.

Knows which parts there are and in which order they start and stop. Does not know
what they do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_service.chat_template import ChatTemplate, find_template
from llm_service.embedding_servicer import EmbeddingServicer, embedding_service
from llm_service.embedding_store import EmbeddingStore
from llm_service.engine.messages import EngineSettings
from llm_service.engine_client import EngineClient
from llm_service.generation import Admission, GenerationParts
from llm_service.item_writer import placeholder_ids
from llm_service.prompt import PromptBuilder
from llm_service.sampling import GenerationDefaults
from llm_service.servicer import LlmServicer, ModelFacts
from llm_service.settings import DEFAULT_ITEM_LIMIT, LlmSettings
from llm_service.text_tokenizer import TextTokenizer
from llm_service.token_check import check_tokens
from protos.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from shared.build_faults import faults_of
from shared.checkpoint import find_checkpoint
from shared.collection import keep_loaded
from shared.embedding_arena import VIRTUAL_FACTOR, EmbeddingArena
from shared.errors import UnavailableError
from shared.families import load_family
from shared.families.base import MAIN_TENSOR, Checkpoint, Family, Modality
from shared.families.catalogue import facts_of
from shared.families.takes_tasks import TakesTasks
from shared.families.writes_speech import WritesSpeech
from shared.rpc.server import RunningServer, ServiceRegistration, build_server
from shared.stop_signals import StopSignals
from shared.telemetry import Stopwatch, configure_logging

logger = logging.getLogger(__name__)

_GIB = 1024**3

_CALLS_PER_REQUEST = 8
"""Calls that gRPC lets in for each request: its own, and pushes of its items."""

_SPARE_CALLS = 64
"""Calls beyond that, so that our bounds speak before gRPC's: status, health, refusals."""

_KEPT_BYTES = 64 * 1024 * 1024
"""Memory of embedding rows that is kept for the next ones."""

_ASK_PATIENCE_S = 30.0
"""How long somebody who was asked for an item may let it not come, before another is asked."""


async def serve(settings: LlmSettings) -> None:
    """Loads, serves until SIGTERM or SIGINT, and drains.

    Raises:
        PerceptError: the checkpoint cannot be served, the address not bound, or
            the engine not (re)started.
    """
    configure_logging("llm", settings.log_level)
    _do_without_torch()
    signals = StopSignals()
    stopping = signals.stopping
    async with running(settings, stopping) as service:
        if stopping.is_set():
            logger.info("stopping before the language model was ready")
            return
        keep_loaded()
        logger.info("serving on port %d", service.port)
        await stopping.wait()
        if service.engine_task.done():
            service.engine_task.result()
        signals.again = service.server.hurry
        logger.info("draining for up to %g s; a second signal ends it at once", settings.drain_grace_s)


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that serves, for whoever started it."""

    port: int
    server: RunningServer
    parts: GenerationParts
    engine_task: asyncio.Task[None]


@asynccontextmanager
async def running(settings: LlmSettings, stopping: asyncio.Event) -> AsyncIterator[RunningService]:
    """Runs the service inside the block: serving at its start, drained at its end.

    Args:
        stopping: ends the start early; is set when the engine is gone for good.
    """
    stopwatch = Stopwatch()
    checkpoint = await asyncio.to_thread(find_checkpoint, settings.model, settings.model_parts)
    with faults_of(checkpoint.folder, "language model"):
        family = load_family(checkpoint)
        prompts, facts = await asyncio.to_thread(_prompts_and_facts, settings, checkpoint, family)
    budget = int(settings.embedding_store_gib * _GIB)
    arena = EmbeddingArena.create(budget * VIRTUAL_FACTOR, min(_KEPT_BYTES, budget))
    engine = EngineClient(
        engine_settings(settings, checkpoint), arena, step_timeout_s=settings.step_timeout_s
    )
    store = EmbeddingStore(arena, budget, engine.send, asyncio.get_running_loop().time)
    parts = GenerationParts(prompts, store, engine, Admission(settings.max_pending_requests))
    server = _build_server(settings, parts, facts)
    port = await server.start(settings.listen)
    announcer = _Announcer(server)
    engine.listen(store, announcer.engine_changed)
    engine_task = asyncio.create_task(engine.run(), name="engine")
    engine_task.add_done_callback(lambda _: stopping.set())
    patience_task = asyncio.create_task(_keep_asking(store), name="ask again")
    try:
        await announcer.wait_until_ready(stopping)
        if engine_task.done():
            engine_task.result()
        if not stopping.is_set():
            logger.info("language model ready after %.1f s", stopwatch.seconds())
        yield RunningService(port, server, parts, engine_task)
    finally:
        await server.drain(settings.drain_grace_s)
        await announcer.close()
        await _end_tasks(engine, engine_task, patience_task)
        prompts.close()
        arena.close()


def _do_without_torch() -> None:
    """Keeps transformers from importing torch into the front, which only tokenises.

    Measured: 260 MB and some seconds less. The engine is another process.
    """
    # Texts come one by one, and the other cores are the engine's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def engine_settings(settings: LlmSettings, checkpoint: Checkpoint) -> EngineSettings:
    """What the engine process must know of the service's settings."""
    return EngineSettings(
        model=str(checkpoint.folder),
        model_parts=settings.model_parts,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        kernels=settings.kernels,
        shared_cores=settings.shared_cores,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enable_prefix_caching=settings.enable_prefix_caching,
        enforce_eager=settings.enforce_eager,
        log_level=settings.log_level,
    )


def item_limits(settings: LlmSettings, family: Family) -> dict[Modality, int]:
    """The most items of each modality in one prompt: what was set, but one where the family takes no more."""
    limits: dict[Modality, int] = {
        modality: settings.limit_mm_per_prompt.get(modality, DEFAULT_ITEM_LIMIT)
        for modality in family.modalities
    }
    facts = facts_of(family.model_type)
    if facts is None or facts.several:
        return limits
    return {modality: min(limit, 1) for modality, limit in limits.items()}


class _Announcer:
    """Tells the health service whether there is an engine."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._serving = False
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        self._task = asyncio.create_task(self._announce(), name="announce health")

    def engine_changed(self, serving: bool) -> None:
        """Notes a change; the announcement of the latest follows."""
        self._serving = serving
        self._changed.set()

    async def wait_until_ready(self, stopping: asyncio.Event) -> None:
        """Waits for the first ready engine, or for the end."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, stopping)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def close(self) -> None:
        """Ends the announcements."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _announce(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._serving:
                await self._server.serving()
                self._ready.set()
            else:
                await self._server.not_serving()


async def _keep_asking(store: EmbeddingStore) -> None:
    """Sees to it that an item does not wait for one caller who never delivers."""
    while True:
        await asyncio.sleep(_ASK_PATIENCE_S / 6)
        store.ask_overdue(_ASK_PATIENCE_S)


async def _end_tasks(
    engine: EngineClient, engine_task: asyncio.Task[None], other: asyncio.Task[None]
) -> None:
    other.cancel()
    engine.stop()
    with suppress(asyncio.CancelledError, UnavailableError):
        await engine_task
    with suppress(asyncio.CancelledError):
        await other


def _prompts_and_facts(
    settings: LlmSettings, checkpoint: Checkpoint, family: Family
) -> tuple[PromptBuilder, ModelFacts]:
    """Reads tokenizer, template and configs. Slow."""
    vocabulary_size = family.vocabulary_size()
    layout = family.prompt_layout()
    shows = layout.shows if isinstance(layout, TakesTasks) else None
    with faults_of(checkpoint.folder, "tokenizer", "tokenizer.json"):
        tokenizer = TextTokenizer.load(checkpoint.folder, family.config(), shows)
    tokenizer.know(layout.added_tokens if isinstance(layout, TakesTasks) else ())
    check_tokens(checkpoint.folder, tokenizer, layout, family.modalities)
    limits = item_limits(settings, family)
    template = _template(settings, checkpoint, family, tokenizer)
    prompts = PromptBuilder(tokenizer, layout, template, limits, vocabulary_size)
    facts = ModelFacts(
        names=settings.served_model_name or (settings.model,),
        family=family.model_type,
        max_model_len=settings.max_model_len or family.context_length(),
        tensor_widths={MAIN_TENSOR: family.hidden_size(), **family.extra_widths()},
        vocabulary_size=vocabulary_size,
        defaults=GenerationDefaults.of_checkpoint(
            checkpoint.generation_config,
            checkpoint.config,
            tokenizer.end_token_id,
            take_sampling=settings.generation_config == "auto",
            temperature=0.0 if isinstance(layout, WritesSpeech | TakesTasks) else 1.0,
        ),
    )
    return prompts, facts


def _template(
    settings: LlmSettings, checkpoint: Checkpoint, family: Family, tokenizer: TextTokenizer
) -> ChatTemplate | None:
    layout = family.prompt_layout()
    source = find_template(checkpoint.folder, tokenizer.hf, settings.chat_template)
    if source is None and isinstance(layout, WritesSpeech | TakesTasks):
        source = layout.chat_template
    if source is None:
        logger.warning("the checkpoint has no chat template: chat requests will be refused")
        return None
    ids = placeholder_ids(tokenizer, layout, family.modalities)
    texts = {modality: layout.placeholder_text(modality) for modality in family.modalities}
    tokens = {modality: str(tokenizer.backend.id_to_token(ids[modality])) for modality in family.modalities}
    return ChatTemplate(tokenizer.hf, source, texts, tokens)


def _row_folder(settings: LlmSettings) -> Path | None:
    if settings.shared_rows is None:
        return None
    folder = Path(settings.shared_rows)
    if not folder.is_dir():
        logger.warning("rows come over connections: --shared-rows %s is no folder", folder)
    return folder


def _build_server(settings: LlmSettings, parts: GenerationParts, facts: ModelFacts) -> RunningServer:
    llm = LlmServicer(parts, facts)
    embeddings = EmbeddingServicer(parts.store, facts.tensor_widths, _row_folder(settings))

    def register_llm(server: Any) -> None:
        llm_service_pb2_grpc.add_LlmServiceServicer_to_server(llm, server)

    llm_name = llm_service_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name
    return build_server(
        [ServiceRegistration(llm_name, register_llm), embedding_service(embeddings)],
        default_deadline_s=settings.default_deadline_s,
        max_concurrent_calls=_CALLS_PER_REQUEST * settings.max_pending_requests + _SPARE_CALLS,
    )
