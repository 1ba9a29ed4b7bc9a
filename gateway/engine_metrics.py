"""What the services tell about themselves, asked when Prometheus asks.

Knows `GetStatus` of both services and the names it goes by. Holds no numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.replicas import Replica, ReplicaSet
from protos.encoder.v1 import encoder_service_pb2
from protos.llm.v1 import llm_service_pb2

_TIMEOUT_S = 1.0


class _Field(NamedTuple):
    name: str
    text: str
    attribute: str
    is_counter: bool


_LLM_FIELDS = (
    _Field("num_requests_running", "Sequences that hold blocks.", "running_sequence_count", False),
    _Field("num_requests_waiting", "Sequences that wait for blocks.", "waiting_sequence_count", False),
    _Field("num_requests_pending", "Requests accepted and not finished.", "pending_request_count", False),
    _Field("num_preemptions", "Sequences preempted.", "preemption_count", True),
    _Field("prompt_tokens", "Prompt tokens computed or found cached.", "prompt_token_count", True),
    _Field("generation_tokens", "Tokens generated.", "generated_token_count", True),
    _Field("prefix_cache_queries", "Prompt tokens looked up.", "prefix_query_token_count", True),
    _Field("prefix_cache_hits", "Prompt tokens found.", "prefix_hit_token_count", True),
    _Field("item_rows", "Rows of items that steps have computed.", "item_row_count", True),
    _Field("engine_steps", "Steps run.", "step_count", True),
    _Field("engine_step_seconds", "Seconds spent in steps.", "step_seconds", True),
    _Field("engine_starts", "Times the engine process was started.", "engine_start_count", True),
    _Field("embedding_store_bytes", "Bytes held by the embedding store.", "embedding_byte_count", False),
    _Field("embedding_store_max_bytes", "Its budget.", "max_embedding_byte_count", False),
    _Field("front_resident_bytes", "Memory of the LLM's front process.", "resident_byte_count", False),
    _Field("engine_resident_bytes", "Memory of the engine process.", "engine_resident_byte_count", False),
)
_ENCODER_FIELDS = (
    _Field("encoder_items_pending", "Items accepted and not finished.", "pending_item_count", False),
    _Field("mm_cache_bytes", "Bytes held by the embedding cache.", "cache_byte_count", False),
    _Field("mm_cache_max_bytes", "Its budget.", "max_cache_byte_count", False),
    _Field("encoder_items", "Items that went through the tower.", "encoded_item_count", True),
    _Field("encoder_batches", "Runs of the tower.", "tower_run_count", True),
    _Field("encoder_lost_workers", "Worker processes that died or were killed.", "lost_worker_count", True),
    _Field("encoder_resident_bytes", "Memory of the encoder service.", "resident_byte_count", False),
)

LlmStatus = llm_service_pb2.GetStatusResponse
EncoderStatus = encoder_service_pb2.GetStatusResponse


class ServiceMetrics(Collector):
    """One scrape's answers, ready to be written."""

    def __init__(self, model: str, llms: dict[str, LlmStatus], encoders: dict[str, EncoderStatus]) -> None:
        self._model = model
        self._llms = llms
        self._encoders = encoders

    def collect(self) -> Iterator[Metric]:
        yield from (_family(field, self._model, self._llms) for field in _LLM_FIELDS)
        yield from (_family(field, self._model, self._encoders) for field in _ENCODER_FIELDS)
        yield self._kv_cache_usage()
        yield self._cache_queries()
        yield self._cache_hits()

    def _kv_cache_usage(self) -> Metric:
        family = GaugeMetricFamily(
            "percept:kv_cache_usage_perc", "Share of blocks in use, 0 to 1.", labels=("model_name", "engine")
        )
        for address, status in self._llms.items():
            share = status.used_block_count / status.block_count if status.block_count else 0.0
            family.add_metric((self._model, address), share)
        return family

    def _cache_queries(self) -> Metric:
        family = _counter("mm_cache_queries", "Items looked up in the embedding cache.")
        for address, status in self._encoders.items():
            family.add_metric((self._model, address), status.cache_hit_count + status.cache_miss_count)
        return family

    def _cache_hits(self) -> Metric:
        family = _counter("mm_cache_hits", "Items found in the embedding cache.")
        for address, status in self._encoders.items():
            family.add_metric((self._model, address), status.cache_hit_count)
        return family


def _family(field: _Field, model: str, statuses: Any) -> Metric:
    family = _counter(field.name, field.text) if field.is_counter else _gauge(field.name, field.text)
    for address, status in statuses.items():
        family.add_metric((model, address), getattr(status, field.attribute))
    return family


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"percept:{name}", text, labels=("model_name", "engine"))


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"percept:{name}", text, labels=("model_name", "engine"))


async def ask_services(
    model: str, llms: ReplicaSet[Any, Any], encoders: ReplicaSet[Any, Any]
) -> ServiceMetrics:
    """Asks every serving replica at once; one that does not answer in time is left out."""
    llm_answers, encoder_answers = await asyncio.gather(
        _ask(llms.serving, llm_service_pb2.GetStatusRequest()),
        _ask(encoders.serving, encoder_service_pb2.GetStatusRequest()),
    )
    return ServiceMetrics(model, llm_answers, encoder_answers)


async def _ask(replicas: Sequence[Replica[Any, Any]], question: Any) -> dict[str, Any]:
    answers = await asyncio.gather(
        *(replica.stub.GetStatus(question, timeout=_TIMEOUT_S) for replica in replicas),
        return_exceptions=True,
    )
    return {
        replica.address: answer
        for replica, answer in zip(replicas, answers, strict=True)
        if not isinstance(answer, grpc.aio.AioRpcError | BaseException)
    }
