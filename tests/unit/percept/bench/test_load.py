"""When requests are sent: the same seed is the same times, and the rate is the rate."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from percept.bench import Load
from shared.errors import InvalidRequestError


def test_a_schedule_is_its_seed() -> None:
    first, again = (Load.open(5, requests=200, seed=3).arrival_times() for _ in range(2))
    assert first == again
    assert first != Load.open(5, requests=200, seed=4).arrival_times()
    assert first == sorted(first)
    assert first[0] == 0


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = Load.open(4, requests=4001).arrival_times()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.05)
    assert deviation == pytest.approx(0.25, rel=0.1)


def test_even_arrivals_are_even() -> None:
    assert Load.open(4, requests=4, arrivals="even").arrival_times() == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    short, longer = (Load.open(7, duration_s=seconds).arrival_times() for seconds in (5, 20))
    assert longer[: len(short)] == short
    assert short[-1] < 5 <= longer[len(short)]


def test_whichever_bound_comes_first_ends_it() -> None:
    assert Load.open(10, requests=3, duration_s=100).total == 3
    assert len(Load.open(10, requests=10_000, duration_s=2).arrival_times()) < 60
    assert Load.closed(4, requests=9).total == 9
    assert Load.closed(4, duration_s=9).total is None


@pytest.mark.parametrize(
    "given",
    [
        {"requests": 5},
        {"concurrency": 1, "rate": 1.0, "requests": 5},
        {"concurrency": 1},
        {"concurrency": 0, "requests": 5},
        {"concurrency": -1, "requests": 5},
        {"rate": 0.0, "requests": 5},
        {"rate": 1.0, "requests": 0},
        {"rate": 1.0, "duration_s": -1.0},
        {"rate": 1.0, "requests": 1, "warmup": -1},
    ],
)
def test_senseless_loads_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Load(**given)
