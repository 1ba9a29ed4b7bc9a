"""How limits become floors, and that measuring gives figures that can be."""

from __future__ import annotations

import pytest

from benchmarks import limits
from benchmarks.limits import Limits, Work, floors

MACHINE = Limits(
    cores=2,
    memory_read_gb_per_s=50.0,
    memcpy_gb_per_s=20.0,
    bf16_gemm_tflops=2.0,
    fp32_gemm_tflops=0.5,
    bf16_gemv_gb_per_s=25.0,
)


def test_rates_count_two_operations_for_each_multiplication_and_decimal_bytes() -> None:
    assert limits.gemm_tflops(2048, 0.01717986918) == pytest.approx(1.0)
    assert limits.gb_per_s(3_000_000_000, 1.5) == 2.0


def test_a_decode_step_takes_at_least_the_time_to_read_the_weights() -> None:
    work = Work(decode_bytes=1_000_000_000, prefill_flops=7e8, picture_flops=4e11)
    least = floors(MACHINE, work, text_tokens=100, picture_prompt_tokens=300)
    assert least.decode_ms == pytest.approx(20.0)
    assert least.text_prefill_ms == pytest.approx(35.0)
    assert least.picture_encode_ms == pytest.approx(200.0)
    assert least.picture_prefill_ms == pytest.approx(105.0)
    assert least.busy_decode_ms == pytest.approx(256 * 0.35)
    few = Work(decode_bytes=10_000_000_000, prefill_flops=7e8, picture_flops=4e11)
    assert floors(MACHINE, few, 100, 300).busy_decode_ms == pytest.approx(200.0)


def test_the_best_of_several_runs_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 3.0, 1.0, 2.0])
    clock = [0.0]

    def run() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr(limits.time, "perf_counter", lambda: clock[0])
    assert limits.best_seconds(run, try_seconds=0.0) == 1.0
    assert next(durations, None) is None


def test_measuring_fills_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GEMM_SIZE", 64)
    monkeypatch.setattr(limits, "GEMV_MATRICES", 1)
    found = limits.measure(1, try_seconds=0.0, buffer_bytes=1 << 20)
    assert found.cores == 1
    assert all(value > 0 for value in found.to_json().values())
    assert limits.table(found).count("GB/s") == 3
