"""When news of the engine are told, and what may wait for company."""

from __future__ import annotations

import pytest

from llm_service.engine.messages import PrefillReport, RowsUsed, TokenReport
from llm_service.engine.pending_report import MAX_HELD_S, MAX_HELD_STEPS, PendingReport

FIRST = TokenReport(1, 5, first=PrefillReport(0, 0.0, 0.0))
NEXT = TokenReport(1, 6)
LAST = TokenReport(1, 7, finish="length")
USED = [RowsUsed(1, "k")]


def holding(now: float = 0.0) -> PendingReport:
    """One token waits."""
    report = PendingReport()
    report.token(NEXT, now, may_wait=True)
    assert report.take([], now, ran=True) is None
    return report


@pytest.mark.parametrize("token", [FIRST, LAST])
def test_the_first_and_the_last_token_never_wait(token: TokenReport) -> None:
    report = PendingReport()
    report.token(token, 0.0, may_wait=True)
    assert report.take([], 0.0, ran=True) == ([token], [], [])


def test_what_waits_goes_with_the_first_that_does_not() -> None:
    report = holding()
    other = TokenReport(2, 9)
    report.token(NEXT, 0.01, may_wait=True)
    report.token(other, 0.01, may_wait=False)
    assert report.take([], 0.01, ran=True) == ([NEXT, NEXT, other], [], [])
    report.token(NEXT, 0.02, may_wait=True)
    assert report.take([], 0.02, ran=True) is None, "and the next one waits again"


def test_ends_and_used_items_are_told_at_once() -> None:
    report = holding()
    report.ended(3)
    assert report.take([], 0.0, ran=True) == ([NEXT], [3], [])
    assert holding().take(USED, 0.0, ran=True) == ([NEXT], [], USED)


def test_nothing_waits_for_long() -> None:
    report = holding(now=1.0)
    assert report.take([], 1.0 + 0.9 * MAX_HELD_S, ran=True) is None
    assert report.take([], 1.0 + MAX_HELD_S, ran=True) == ([NEXT], [], [])


def test_nothing_waits_for_many_steps() -> None:
    report = PendingReport()
    told = []
    for _ in range(2 * MAX_HELD_STEPS):
        report.token(NEXT, 0.0, may_wait=True)
        told.append(report.take([], 0.0, ran=True))
    assert [len(news[0]) for news in told if news is not None] == [MAX_HELD_STEPS, MAX_HELD_STEPS]


def test_nothing_waits_where_nothing_runs() -> None:
    assert holding().take([], 0.0, ran=False) == ([NEXT], [], [])


def test_a_step_without_tokens_is_told() -> None:
    report = PendingReport()
    assert report.take([], 0.0, ran=True) == ([], [], [])
    assert report.take([], 0.0, ran=False) is None
