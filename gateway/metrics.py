"""What the gateway measures, in Prometheus' form.

Names follow vLLM's where one means the same, under our own prefix. Knows metrics;
does not know how requests are worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protos.llm.v1 import llm_service_pb2
from shared.errors import OverloadedError, PerceptError
from shared.settings import ModalityName
from shared.telemetry import Stopwatch

Stage = Literal["fetch", "encoder_queue", "decode", "encode", "transfer", "prefill", "decode_step"]

MetricT = TypeVar("MetricT", Histogram, Counter)

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLOW = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_COUNTS = (1, 2, 5, 10, 20)


class Stages(Protocol):
    """Where the seconds of a request's stages go."""

    def observe_stage(self, stage: Stage, seconds: float, modality: ModalityName | None = None) -> None: ...


_HISTOGRAMS: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("time_to_first_token_seconds", "From the request's arrival to its first token.", _FAST),
    (
        "inter_token_latency_seconds",
        "Between two tokens of one choice; of several at once, their mean.",
        _FAST,
    ),
    ("request_time_per_output_token_seconds", "Mean time between a request's tokens.", _FAST),
    ("e2e_request_latency_seconds", "From the request's arrival to its end.", _SLOW),
    ("request_queue_time_seconds", "From arrival at the LLM to the first scheduled step.", _FAST),
    ("request_prefill_time_seconds", "From the first scheduled step to the first token.", _FAST),
    ("request_decode_time_seconds", "From the first to the last token.", _SLOW),
    ("request_inference_time_seconds", "Prefill and decode together.", _SLOW),
    ("request_prompt_tokens", "Prompt tokens of a request, media rows included.", _TOKENS),
    ("request_generation_tokens", "Generated tokens of a request.", _TOKENS),
    ("request_params_n", "Choices asked for.", _COUNTS),
    ("request_params_max_tokens", "Most tokens asked for, where a request said.", _TOKENS),
    ("request_images", "Pictures of a request.", (0, *_COUNTS)),
    ("request_videos", "Videos of a request.", (0, *_COUNTS)),
)
_COUNTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "request_success",
        "Choices that ended without an error, by reason; cancelled: the client left.",
        ("finished_reason",),
    ),
    ("request_failures", "Requests that failed, by error code.", ("code",)),
    ("admission_rejections", "Requests refused because something was full.", ("reason",)),
    ("prompt_tokens_cached", "Prompt tokens that the prefix cache served.", ()),
)
_STAGES_TEXT = (
    "Seconds: fetch, encoder_queue, decode, encode, transfer (of one item of the modality), "
    "prefill, decode_step (of a request; no modality)."
)


class Metrics:
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self, model_name: Callable[[], str]) -> None:
        """
        Args:
            model_name: the main model's name at the time of asking, "" while unknown; it
                labels what is measured.
        """
        self.registry = CollectorRegistry()
        self.model_name = model_name
        # As many as there are series: labels are never the client's own text.
        self._children: dict[tuple[Histogram | Counter, tuple[str, ...]], Histogram | Counter] = {}
        self._histograms = {
            name: self._histogram(name, text, (), buckets) for name, text, buckets in _HISTOGRAMS
        }
        self._stages = self._histogram("stage_seconds", _STAGES_TEXT, ("modality", "stage"), _FAST)
        self._counters = {
            name: Counter(f"percept:{name}", text, ("model_name", *labels), registry=self.registry)
            for name, text, labels in _COUNTERS
        }
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
        return Histogram(
            f"percept:{name}", text, ("model_name", *labels), buckets=buckets, registry=self.registry
        )

    def observe(self, name: str, value: float) -> None:
        """Adds an observation to the histogram of that name."""
        self.histogram(name).observe(value)

    def histogram(self, name: str) -> Histogram:
        """Returns the histogram of that name, to be observed often."""
        return self._child(self._histograms[name], self.model_name())

    def observe_stage(self, stage: Stage, seconds: float, modality: ModalityName | None = None) -> None:
        """Adds an observation of a stage, for an item of a modality where it is one's."""
        self._child(self._stages, self.model_name(), modality or "", stage).observe(seconds)

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        """Adds to the counter of that name."""
        self._child(self._counters[name], self.model_name(), *labels).inc(amount)

    def request(self, method: str, route: str, status: str, seconds: float) -> None:
        """Counts an HTTP request that was answered."""
        self._child(self.http_requests, method, route, status).inc()
        self._child(self.http_duration, method, route).observe(seconds)

    def _child(self, metric: MetricT, *labels: str) -> MetricT:
        """The series with these label values. To ask the metric each time costs more than to observe."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return cast(MetricT, child)


class RequestMeter:
    """Measures one request from its arrival to its end."""

    def __init__(self, metrics: Metrics, watch: Stopwatch) -> None:
        """Args:
        watch: runs since the request's arrival.
        """
        self._metrics = metrics
        self._watch = watch
        self._token_latency = metrics.histogram("inter_token_latency_seconds")
        self._last_delta_at: dict[int, float] = {}
        self._choice_count = 1
        self._finished_count = 0

    def asked(
        self, *, choice_count: int, max_tokens: int | None, item_counts: Mapping[ModalityName, int]
    ) -> None:
        """The request was understood."""
        self._choice_count = choice_count
        self._metrics.observe("request_params_n", choice_count)
        self._metrics.observe("request_images", item_counts.get("image", 0))
        self._metrics.observe("request_videos", item_counts.get("video", 0))
        if max_tokens is not None:
            self._metrics.observe("request_params_max_tokens", max_tokens)

    def delta(self, choice_index: int, token_count: int) -> None:
        """New tokens of a choice arrived. Of several together, each took an equal part of the time."""
        now = self._watch.seconds()
        before = self._last_delta_at.get(choice_index)
        if before is not None:
            for _ in range(token_count):
                self._token_latency.observe((now - before) / token_count)
        elif not self._last_delta_at:
            self._metrics.observe("time_to_first_token_seconds", now)
        self._last_delta_at[choice_index] = now

    def finish(self, reason: str) -> None:
        """A choice is complete."""
        self._finished_count += 1
        self._metrics.count("request_success", reason)

    def cancel(self) -> None:
        """The client left: the choices that are not complete never will be."""
        self._metrics.count("request_success", "cancelled", amount=self._choice_count - self._finished_count)

    def fail(self, error: PerceptError) -> None:
        """The request failed."""
        self._metrics.count("request_failures", error.code or error.reason.lower())
        if isinstance(error, OverloadedError):
            self._metrics.count("admission_rejections", "service_overloaded")

    def complete(self, usage: llm_service_pb2.Usage, timings: llm_service_pb2.Timings) -> None:
        """All choices are complete."""
        metrics = self._metrics
        metrics.observe("e2e_request_latency_seconds", self._watch.seconds())
        metrics.observe("request_prompt_tokens", usage.prompt_token_count)
        metrics.observe("request_generation_tokens", usage.completion_token_count)
        metrics.count("prompt_tokens_cached", amount=usage.cached_token_count)
        metrics.observe("request_queue_time_seconds", timings.queue_seconds)
        metrics.observe("request_prefill_time_seconds", timings.prefill_seconds)
        metrics.observe("request_decode_time_seconds", timings.decode_seconds)
        metrics.observe("request_inference_time_seconds", timings.prefill_seconds + timings.decode_seconds)
        metrics.observe_stage("prefill", timings.prefill_seconds)
        self._complete_steps(usage.completion_token_count / self._choice_count - 1, timings.decode_seconds)

    def _complete_steps(self, step_count: float, decode_seconds: float) -> None:
        """The time for one step, in which each choice gets a token; their mean length counts."""
        if step_count > 0:
            self._metrics.observe("request_time_per_output_token_seconds", decode_seconds / step_count)
            self._metrics.observe_stage("decode_step", decode_seconds / step_count)
