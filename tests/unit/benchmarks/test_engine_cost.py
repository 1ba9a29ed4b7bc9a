"""The engine's own cost is measured on steps in which every sequence decodes."""

from __future__ import annotations

from benchmarks.engine_cost import measure


def test_a_small_run_gives_microseconds_of_a_step() -> None:
    found = measure(sequence_count=3, prompt_tokens=40, repeats=20)
    assert (found["sequences"], found["prompt_tokens"], found["step_us"]["count"]) == (3, 40, 20)
    assert 0 < found["step_us"]["p25"] <= found["step_us"]["p50"] <= found["step_us"]["p75"]


def test_more_sequences_than_one_chunk_of_prompts_holds() -> None:
    found = measure(sequence_count=12, prompt_tokens=1000, repeats=5)
    assert found["step_us"]["count"] == 5
