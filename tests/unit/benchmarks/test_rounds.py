"""Peers take turns, one that does not start is left out, and what was measured before stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.peer import PeerError, Place, Session
from benchmarks.suite.cases import Case, cases
from benchmarks.suite.figures import Figures
from benchmarks.suite.results import Results
from benchmarks.suite.rounds import Rounds, turns


class Counter:
    """A peer that answers with how often it was asked."""

    def __init__(self, name: str, events: list[str], fails_at: str = "") -> None:
        self.name = name
        self.asked: list[Case] = []
        self._events = events
        self._fails_at = fails_at

    def adapt(self, case: Case) -> Case | None:
        return None if case.has_images else case.with_requests(2)

    @contextmanager
    def session(self, place: Place, round_index: int) -> Iterator[Session]:
        if self._fails_at == "start":
            raise PeerError("no such command")
        self._events.append(f"{self.name} starts")
        try:
            yield self
        finally:
            self._events.append(f"{self.name} ends")

    def measure(self, case: Case) -> Figures:
        if case.name == self._fails_at:
            raise PeerError(f"died in {case.name}")
        self.asked.append(case)
        return Figures(float(len(self.asked)), 1.0, 1.0, 1.0, 1.0)


PLACE = Place(Path("checkpoint"), (0,), Path("peers"), Path("logs"))


def run(peers: list[Counter], rounds: int = 2) -> Results:
    results = Results()
    keeping: list[int] = []
    said: list[str] = []
    Rounds(PLACE, cases(), results, said.append, lambda: keeping.append(1)).run(turns(peers, [], rounds))
    assert keeping
    return results


def test_who_is_first_in_one_round_is_last_in_the_next() -> None:
    first, second, third = (Counter(name, []) for name in "ABC")
    plan = [(turn.peer.name, turn.round_index) for turn in turns([first, second], [third], 3)]
    assert plan == [("A", 0), ("B", 0), ("C", 0), ("B", 1), ("A", 1), ("A", 2), ("B", 2)]


def test_one_server_runs_at_a_time() -> None:
    events: list[str] = []
    run([Counter("A", events), Counter("B", events)])
    assert events == [f"{name} {what}" for name in "ABBA" for what in ("starts", "ends")]


def test_a_peer_is_asked_what_it_can_take_with_new_prompts_in_each_round() -> None:
    peer, other = Counter("A", []), Counter("B", [])
    results = run([peer, other])
    assert [case.name for case in peer.asked] == ["text-1", "text-4", "text-16", "text-1", "text-16"]
    assert all(case.load.requests == 2 for case in peer.asked)
    seeds = {case.workload.seed for case in peer.asked}
    assert len(seeds) == len(peer.asked)
    assert {case.workload.seed for case in other.asked} == seeds
    assert len(results.measurements) == 2 * len(peer.asked)


def test_a_peer_that_does_not_start_is_reported_once_and_the_others_go_on() -> None:
    results = run([Counter("A", [], fails_at="start"), Counter("B", [])])
    assert results.troubles == ["A: no such command"]
    assert results.peers() == ["B"]


def test_a_peer_that_dies_keeps_what_it_had_measured_and_ends() -> None:
    events: list[str] = []
    results = run([Counter("A", events, fails_at="text-4"), Counter("B", events)], rounds=1)
    assert [each.case for each in results.measurements if each.peer == "A"] == ["text-1"]
    assert results.troubles == ["A: died in text-4"]
    assert events[:2] == ["A starts", "A ends"]
    assert results.series("B", "text-16", "requests_per_s")
