"""When a crashed service starts again, and when it is enough."""

from __future__ import annotations

import pytest

from percept.launcher.process import describe_status
from percept.launcher.supervisor import LONGEST_BACK_OFF_S, MAX_RESTARTS, RESTART_WINDOW_S, RestartBudget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_a_bound_and_then_it_is_enough() -> None:
    budget = RestartBudget(Clock())
    waits = [budget.next_wait_s() for _ in range(MAX_RESTARTS)]
    assert waits == [0.5, 1.0, 2.0, 4.0, LONGEST_BACK_OFF_S]
    assert budget.next_wait_s() is None


def test_a_service_that_ran_well_for_long_starts_from_the_beginning() -> None:
    clock = Clock()
    budget = RestartBudget(clock)
    for _ in range(3 * MAX_RESTARTS):
        clock.now += RESTART_WINDOW_S + 1
        assert budget.next_wait_s() == 0.5


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit status 0"), (3, "exit status 3"), (-9, "killed by SIGKILL")]
)
def test_an_exit_status_in_words(status: int, words: str) -> None:
    assert describe_status(status) == words
