"""Percentiles, TTFT, TPOT and goodput against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from percept.bench import (
    Distribution,
    GeneratorCost,
    Load,
    RequestRecord,
    RunResult,
    Slo,
    Workload,
    percentile,
    summarise,
)
from percept.bench.plots import in_few_digits, token_rates
from shared.errors import InvalidRequestError

QUIET = GeneratorCost(
    cpu_s=0.1,
    wall_s=10.0,
    loop_lag_p99_ms=1.0,
    loop_lag_max_ms=2.0,
    send_lag_p99_ms=0.5,
    send_lag_max_ms=1.0,
)


def record(**given: Any) -> RequestRecord:
    """Due at 1 s, sent at 1.1 s; five tokens in three deltas at 1.5, 1.7 and 2.3 s; ended at 2.4 s."""
    usual: dict[str, Any] = {
        "index": 0,
        "kind": "text",
        "scheduled_s": 1.0,
        "sent_s": 1.1,
        "end_s": 2.4,
        "delta_times_s": [1.5, 1.7, 2.3],
        "input_tokens": 20,
        "output_tokens": 5,
        "finish_reason": "length",
        "status": 200,
    }
    return RequestRecord(**(usual | given))


def run(*records: RequestRecord, **given: Any) -> RunResult:
    usual: dict[str, Any] = {
        "name": "server",
        "url": "http://127.0.0.1:1/v1",
        "model": "m",
        "workload": Workload(output_tokens=5),
        "load": Load.closed(1, requests=1),
        "records": list(records),
        "duration_s": 10.0,
        "unfinished": 0,
        "interrupted": False,
        "started_at": "2026-01-01T00:00:00+00:00",
        "generator": QUIET,
    }
    return RunResult(**(usual | given))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 50, 3.0),
        # Rank 0.9 * 4 = 3.6: six tenths of the way from the fourth to the fifth.
        ([1.0, 2.0, 3.0, 4.0, 10.0], 90, 7.6),
        ([float(value) for value in range(101)], 99, 99.0),
        ([3.0, 5.0], 0, 3.0),
        ([3.0, 5.0], 100, 5.0),
    ],
)
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_a_distribution_needs_no_order_and_takes_a_scale() -> None:
    made = Distribution.of([0.3, 0.1, 0.2], 1000)
    assert made is not None
    assert (made.count, made.max) == (3, 300)
    assert (made.mean, made.p50, made.p90) == (pytest.approx(200), pytest.approx(200), pytest.approx(280))
    assert Distribution.of([]) is None


def test_latencies_count_from_when_the_request_was_due() -> None:
    one = record()
    assert one.ttft_s == pytest.approx(0.5)
    assert one.e2e_s == pytest.approx(1.4)
    # Four tokens after the first, in the 0.8 s between first and last delta.
    assert one.tpot_s == pytest.approx(0.2)
    assert one.itl_s == pytest.approx([0.2, 0.6])


def test_without_a_count_each_delta_is_a_token() -> None:
    one = record(output_tokens=None)
    assert one.token_count == 3
    assert one.tpot_s == pytest.approx(0.4)


def test_one_token_has_no_time_per_further_token() -> None:
    one = record(delta_times_s=[1.5], output_tokens=1)
    assert one.tpot_s is None
    assert one.itl_s == []
    assert Slo(tpot_ms=0.001).keeps(one)


def test_rates_are_of_the_whole_run_and_of_answers_alone() -> None:
    group = summarise(run(record(), record(), record(error="HTTP 500: no", delta_times_s=[]))).overall
    assert (group.answered, group.failed) == (2, 1)
    assert group.requests_per_s == pytest.approx(0.2)
    assert group.output_tokens_per_s == pytest.approx(1.0)
    assert group.total_tokens_per_s == pytest.approx(5.0)
    assert group.ttft_ms is not None and group.ttft_ms.count == 2
    assert group.itl_ms is not None and group.itl_ms.count == 4


def test_goodput_counts_failures_as_not_good() -> None:
    slow = record(delta_times_s=[1.7, 1.8, 2.3])
    failed = record(error="timeout after 1 s", delta_times_s=[])
    goodput = summarise(run(record(), record(), slow, failed), Slo(ttft_ms=600)).overall.goodput
    assert goodput is not None
    assert goodput.share == pytest.approx(0.5)
    assert goodput.requests_per_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (Slo(ttft_ms=501), True),
        (Slo(ttft_ms=499), False),
        (Slo(tpot_ms=201), True),
        (Slo(tpot_ms=199), False),
        (Slo(e2e_ms=1401), True),
        (Slo(e2e_ms=1399), False),
        (Slo(ttft_ms=501, tpot_ms=199), False),
    ],
)
def test_every_limit_counts(slo: Slo, kept: bool) -> None:
    assert slo.keeps(record()) is kept


def test_kinds_are_told_apart() -> None:
    summary = summarise(run(record(), record(kind="image", delta_times_s=[3.0, 3.1])))
    assert list(summary.by_kind) == ["text", "image"]
    text, image = (summary.by_kind[kind].ttft_ms for kind in ("text", "image"))
    assert text is not None and image is not None
    assert (text.p99, image.p99) == (pytest.approx(500), pytest.approx(2000))


def test_errors_that_differ_in_numbers_alone_are_one_kind() -> None:
    texts = [
        "HTTP 429: full",
        "the server closed the connection, 3 deltas",
        "HTTP 500: error 3f2a99b07c11",
        "HTTP 500: error 88aa01b2-c3d4",
        "the server closed the connection, 17 deltas",
        "HTTP 500: error 3f2a99b07c11",
    ]
    errors = summarise(run(*(record(error=text) for text in texts))).overall.errors
    assert list(errors.items()) == [(texts[2], 3), (texts[1], 2), (texts[0], 1)]


def test_errors_of_other_status_are_of_another_kind() -> None:
    records = [record(error=f"HTTP {status}: no", status=status) for status in (500, 503)]
    assert summarise(run(*records)).overall.errors == {"HTTP 500: no": 1, "HTTP 503: no": 1}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (run(record(output_tokens=4)), "1 answers were not of 5 tokens"),
        (run(record(output_tokens=None)), "without token counts"),
        (run(record(cached_tokens=16)), "80% of all prompt tokens cached"),
        (run(record(), interrupted=True, unfinished=3), "3 requests were under way"),
        (run(record(), generator=replace(QUIET, send_lag_p99_ms=50.0)), "fell behind"),
        (run(record(), generator=replace(QUIET, cpu_s=9.0)), "90% of a core"),
    ],
)
def test_what_a_reader_must_know_is_said(result: RunResult, words: str) -> None:
    (warning,) = summarise(result).warnings
    assert words in warning


@pytest.mark.parametrize("given", [{"repeated_prefix_tokens": 64}, {"images": 1, "repeated_images": 1}])
def test_cached_prompts_are_no_surprise_where_they_were_asked_for(given: dict[str, Any]) -> None:
    asked = Workload(output_tokens=5, **given)
    assert summarise(run(record(cached_tokens=16), workload=asked)).warnings == []


def test_a_clean_run_has_no_warnings() -> None:
    assert summarise(run(record())).warnings == []


def test_nothing_answered_has_no_latencies() -> None:
    group = summarise(run(record(error="empty answer", delta_times_s=[])), Slo(ttft_ms=1)).overall
    assert (group.answered, group.ttft_ms, group.e2e_ms) == (0, None, None)
    assert group.goodput is not None and group.goodput.share == 0


def test_a_limit_that_nothing_can_keep_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="ttft_ms"):
        Slo(ttft_ms=0)


def test_tokens_over_time_are_spread_over_the_deltas() -> None:
    """Six tokens in three deltas at 1.5, 1.7 and 2.3 s: two tokens each."""
    times, rates = token_rates(run(record(output_tokens=6), duration_s=2.4), width_s=0.5)
    assert times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert rates == pytest.approx([0, 0, 0, 8, 4, 4])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.98543, "0.985"), (29.33, "29.3"), (1512.7, "1,513")]
)
def test_figures_above_bars_are_short(value: float | None, text: str) -> None:
    assert in_few_digits(value) == text
