"""Ratios are taken within rounds, bars are judged by their median, and reports say what was not measured."""

from __future__ import annotations

import pytest

from benchmarks.suite.bars import BARS, Bar, judge_all, over_vllm, own_share, program
from benchmarks.suite.figures import Figures
from benchmarks.suite.ratios import Spread, paired_ratios
from benchmarks.suite.report import bar_table, markdown, show
from benchmarks.suite.results import Measurement, Results


def figures(tpot_ms: float, failed: int = 0) -> Figures:
    return Figures(
        requests_per_s=1000 / tpot_ms,
        output_tokens_per_s=64_000 / tpot_ms,
        ttft_ms=10 * tpot_ms,
        ttft_p99_ms=20 * tpot_ms,
        tpot_ms=tpot_ms,
        answered=8,
        failed=failed,
    )


def results_of(rows: list[tuple[str, int, Figures]]) -> Results:
    found = Results(cases={"text-1": {"output_tokens": 64}})
    found.measurements = [Measurement(peer, "text-1", index, each) for peer, index, each in rows]
    return found


def test_a_ratio_pairs_values_of_the_same_round_only() -> None:
    above = {0: 10.0, 1: 40.0, 3: 7.0}
    below = {0: 20.0, 1: 20.0, 2: 1.0, 3: None}
    assert paired_ratios(above, below) == [0.5, 2.0]


def test_a_round_whose_lower_value_is_0_has_no_ratio() -> None:
    assert paired_ratios({0: 1.0}, {0: 0.0}) == []


def test_a_machine_that_slows_down_moves_figures_but_not_their_ratio() -> None:
    slowdown = [1.0, 2.0, 4.0]
    rows = [("percept", index, figures(20 * factor)) for index, factor in enumerate(slowdown)]
    rows += [("vllm", index, figures(25 * factor)) for index, factor in enumerate(slowdown)]
    found = results_of(rows)
    spread = found.spread("percept", "text-1", "tpot_ms")
    assert spread == Spread(40.0, 20.0, 80.0, 3)
    ratio = found.ratio("percept", "vllm", "text-1", "tpot_ms")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.8, 0.8, 0.8))


def test_a_round_with_failed_requests_counts_for_nothing() -> None:
    rows = [("percept", 0, figures(20, failed=1)), ("vllm", 0, figures(25))]
    assert results_of(rows).ratio("percept", "vllm", "text-1", "tpot_ms") is None


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [
        (0.70, True, "stretch met"),
        (0.71, True, "met"),
        (0.90, True, "met"),
        (0.91, True, "not met"),
        (0.90, False, "met"),
        (0.89, False, "not met"),
    ],
)
def test_a_bar_is_judged_by_the_median(value: float, at_most: bool, verdict: str) -> None:
    stretch = 0.7 if at_most else None
    bar = Bar("speed", lambda _: Spread(value, 0.1, 9.0, 3), 0.9, stretch, at_most)
    assert bar.judge(Results()).verdict == verdict


def test_a_spread_that_crosses_the_bar_is_not_clear() -> None:
    wide, narrow = Spread(0.8, 0.7, 1.0, 3), Spread(0.8, 0.7, 0.85, 3)
    bars = [Bar("speed", lambda _, spread=spread: spread, 0.9) for spread in (wide, narrow)]  # type: ignore[misc]
    assert [bar.judge(Results()).is_clear for bar in bars] == [False, True]


def test_every_bar_finds_its_value_in_the_results() -> None:
    found = Results()
    for case in ("text-1", "text-16", "image-1", "image-16", "mixed"):
        for peer in ("percept", "vllm"):
            each = Figures(2.0, 100.0, 50.0, 90.0, 20.0, text_ttft_p99_ms=80.0)
            found.measurements.append(Measurement(peer, case, 0, each))
    spread = {"p50": 0.5, "p25": 0.4, "p75": 0.6, "count": 9}
    found.programs = {
        "repeats": {"ratio": spread, "tower_runs": 1},
        "overlap": {"ratio": spread},
        "overhead": {"overhead_ms": spread},
        "transfer": {"speed_ratio": spread, "shared_speed_ratio": spread},
        "start_time": {"first_answer_s": spread},
        "engine_cost": {"step_us": spread},
    }
    found.floors = {"busy_decode_ms": 100.0}
    judged = judge_all(found)
    assert len(judged) == len(BARS)
    assert all(each.value is not None for each in judged)
    assert {each.verdict for each in judged} >= {"not met", "met"}


def test_a_bar_without_a_value_is_reported_as_not_measured() -> None:
    judged = Bar("speed", over_vllm("text-1", "tpot_ms"), 0.9).judge(Results())
    assert judged.verdict == "not measured"
    assert "| speed | at most 0.9 |  | - | not measured |" in bar_table([judged])


def test_the_engine_s_own_time_is_judged_as_a_share_of_the_step() -> None:
    microseconds = {"p50": 1500, "p25": 1000, "p75": 2000, "count": 9}
    found = Results(programs={"engine_cost": {"step_us": microseconds}})
    assert own_share(found) is None
    found.floors = {"busy_decode_ms": 100.0}
    assert own_share(found) == Spread(1.5, 1.0, 2.0, 9)


def test_a_program_s_figure_may_be_a_number_or_a_spread() -> None:
    found = Results(programs={"one": {"count": 3, "ratio": {"p50": 2, "p25": 1, "p75": 4, "count": 8}}})
    assert program("one", "count")(found) == Spread(3.0, 3.0, 3.0, 1)
    assert program("one", "absent", "ratio")(found) == Spread(2, 1, 4, 8)
    assert program("other", "ratio")(found) is None


def test_a_value_shows_its_spread_where_there_is_one() -> None:
    assert show(Spread(0.876, 0.811, 0.934, 3), 2) == "0.88 (0.81 to 0.93)"
    assert show(Spread(7.5, 7.5, 7.5, 1), 1, " s") == "7.5 s"
    assert show(None, 2) == "-"


def test_the_report_holds_figures_ratios_troubles_and_warnings() -> None:
    found = results_of([("percept", 0, figures(20)), ("vllm", 0, figures(25))])
    found.measurements[0].figures.warnings.append("2 answers were not of 64 tokens")
    found.machine = {"processor": "a processor"}
    found.troubles = ["generate: ended with code 1\nits last line"]
    text = markdown(found, judge_all(found))
    assert "- processor: a processor" in text
    assert "| text-1 | percept | 50.000 | 3200.0 | 200 | 400 | 20.0 | - |" in text
    assert "| text-1 | percept / vllm | 1.25 | 0.80 | 0.80 |" in text
    assert "- generate: ended with code 1\n  its last line" in text
    assert "- percept, text-1, round 1: 2 answers were not of 64 tokens" in text


def test_an_empty_report_is_still_a_report() -> None:
    text = markdown(Results(), judge_all(Results()))
    assert text.count("not measured") == len(BARS)
    assert "## Figures" not in text
