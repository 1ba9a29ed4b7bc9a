"""What the gateway measures, in Prometheus' form.

Names follow vLLM's where one means the same, under our own prefix. Knows metrics;
does not know how requests are worked on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protos.llm.v1 import llm_service_pb2
from shared.telemetry import Stopwatch

Stage = Literal["fetch", "encoder_queue", "decode", "encode", "transfer", "prefill", "decode_step"]

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLOW = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_COUNTS = (1, 2, 5, 10, 20)


class Stages(Protocol):
    """Where the seconds of a request's stages go."""

    def observe(self, stage: Stage, seconds: float) -> None: ...


class Metrics:
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._model = ""
        model = ("model_name",)
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Seconds: fetch, encoder_queue, decode, encode, transfer, prefill, decode_step.",
            (*model, "stage"),
            _FAST,
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", model, _FAST
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Between two deltas of one choice.", model, _FAST
        )
        self.time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between a request's tokens.", model, _FAST
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its end.", model, _SLOW
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From arrival at the LLM to the first scheduled step.", model, _FAST
        )
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From the first scheduled step to the first token.", model, _FAST
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "From the first to the last token.", model, _SLOW
        )
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "Prefill and decode together.", model, _SLOW
        )
        self.prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request, media rows included.", model, _TOKENS
        )
        self.generation_tokens = self._histogram(
            "request_generation_tokens", "Generated tokens of a request.", model, _TOKENS
        )
        self.params_n = self._histogram("request_params_n", "Choices asked for.", model, _COUNTS)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "Most tokens asked for, where a request said.", model, _TOKENS
        )
        self.images = self._histogram("request_images", "Pictures of a request.", model, (0, *_COUNTS))
        self.success = self._counter(
            "request_success", "Choices that were completed, by reason.", (*model, "finished_reason")
        )
        self.rejections = self._counter(
            "admission_rejections", "Requests refused because something was full.", (*model, "reason")
        )
        self.failures = self._counter(
            "request_failures", "Requests that failed, by error code.", (*model, "code")
        )
        self.cached_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens that the prefix cache served.", model
        )
        self.requests_in_gateway = Gauge(
            "percept:num_requests_in_gateway", "Requests being worked on.", registry=self.registry
        )
        self.http_requests = Counter(
            "http_requests", "HTTP requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.http_duration = Histogram(
            "http_request_duration_seconds",
            "Seconds until an HTTP request was answered.",
            ("method", "route"),
            buckets=_SLOW,
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"percept:{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"percept:{name}", text, labels, registry=self.registry)

    @property
    def model(self) -> str:
        """The main model's name, which labels what is measured."""
        return self._model

    @model.setter
    def model(self, name: str) -> None:
        self._model = name

    def observe(self, stage: Stage, seconds: float) -> None:
        """Adds one observation of a stage."""
        self.stage_seconds.labels(self._model, stage).observe(seconds)


class RequestMeter:
    """Measures one request from its arrival to its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._watch = Stopwatch()
        self._last_delta_at: dict[int, float] = {}

    def asked(self, *, choice_count: int, max_tokens: int | None, image_count: int) -> None:
        """The request was understood."""
        metrics, model = self._metrics, self._metrics.model
        metrics.params_n.labels(model).observe(choice_count)
        metrics.images.labels(model).observe(image_count)
        if max_tokens is not None:
            metrics.params_max_tokens.labels(model).observe(max_tokens)

    def delta(self, choice_index: int) -> None:
        """New text of a choice arrived."""
        now, model = self._watch.seconds(), self._metrics.model
        before = self._last_delta_at.get(choice_index)
        if before is not None:
            self._metrics.inter_token_latency.labels(model).observe(now - before)
        elif not self._last_delta_at:
            self._metrics.time_to_first_token.labels(model).observe(now)
        self._last_delta_at[choice_index] = now

    def finish(self, reason: str) -> None:
        """A choice is complete."""
        self._metrics.success.labels(self._metrics.model, reason).inc()

    def complete(self, usage: llm_service_pb2.Usage, timings: llm_service_pb2.Timings) -> None:
        """All choices are complete."""
        metrics, model = self._metrics, self._metrics.model
        metrics.latency.labels(model).observe(self._watch.seconds())
        metrics.prompt_tokens.labels(model).observe(usage.prompt_token_count)
        metrics.generation_tokens.labels(model).observe(usage.completion_token_count)
        metrics.cached_tokens.labels(model).inc(usage.cached_token_count)
        metrics.queue_time.labels(model).observe(timings.queue_seconds)
        metrics.prefill_time.labels(model).observe(timings.prefill_seconds)
        metrics.decode_time.labels(model).observe(timings.decode_seconds)
        metrics.inference_time.labels(model).observe(timings.prefill_seconds + timings.decode_seconds)
        metrics.observe("prefill", timings.prefill_seconds)
        # Of the longest choice, whose tokens the whole request's bound from above.
        steps = usage.completion_token_count - 1
        if steps > 0:
            metrics.time_per_output_token.labels(model).observe(timings.decode_seconds / steps)
            metrics.observe("decode_step", timings.decode_seconds / steps)
