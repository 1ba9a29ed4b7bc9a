"""The order of measuring: peers by turns, round after round, one server at a time.

Knows whose turn it is and what becomes of a failure. Does not know how a peer is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.peers.peer import Peer, PeerError, Place, Session
from benchmarks.suite.cases import Case
from benchmarks.suite.results import Measurement, Results

Say = Callable[[str], None]
SEEDS_PER_ROUND = 1000


@dataclass(frozen=True, slots=True)
class Turn:
    """A peer's turn.

    Attributes:
        peer: whose.
        round_index: in which round.
    """

    peer: Peer
    round_index: int


def turns(by_turns: Sequence[Peer], once: Sequence[Peer], rounds: int) -> list[Turn]:
    """A B, B A, A B ...: whoever is first in one round is last in the next.

    Args:
        by_turns: peers that take part in each round.
        once: peers that take part in the first round only, after the others.
    """
    found = [
        Turn(peer, index) for index in range(rounds) for peer in (by_turns[::-1] if index % 2 else by_turns)
    ]
    first_round = [Turn(peer, 0) for peer in once]
    return [*found[: len(by_turns)], *first_round, *found[len(by_turns) :]]


class Rounds:
    """Runs turns and notes what comes out. A peer that does not start is reported once and left out."""

    def __init__(
        self, place: Place, cases: Sequence[Case], results: Results, say: Say, keep: Callable[[], None]
    ) -> None:
        """Runs nothing yet.

        Args:
            keep: called after each turn, to put away what is known.
        """
        self._place = place
        self._cases = cases
        self._results = results
        self._say = say
        self._keep = keep
        self._absent: set[str] = set()
        self._started = time.monotonic()

    def run(self, plan: Sequence[Turn]) -> None:
        """Runs all turns."""
        for number, turn in enumerate(plan, 1):
            name = turn.peer.name
            if name in self._absent:
                continue
            elapsed = time.strftime("%M:%S", time.gmtime(time.monotonic() - self._started))
            self._say(f"[{number}/{len(plan)}] {name}, round {turn.round_index + 1} ({elapsed} so far)")
            try:
                self._take(turn)
            except PeerError as error:
                self._absent.add(name)
                self._results.troubles.append(f"{name}: {error}")
                self._say(f"{name} is left out: {error}")
            self._keep()

    def _take(self, turn: Turn) -> None:
        begun = time.monotonic()
        with turn.peer.session(self._place, turn.round_index) as session:
            ready_s = time.monotonic() - begun
            self._results.starts.setdefault(turn.peer.name, []).append(round(ready_s, 2))
            self._say(f"{turn.peer.name} is ready and warm after {ready_s:.0f} s")
            for place, case in enumerate(self._cases):
                adapted = turn.peer.adapt(case)
                wanted = turn.round_index == 0 or not case.first_round_only
                if adapted is not None and wanted:
                    seed = SEEDS_PER_ROUND * (turn.round_index + 1) + place
                    self._measure(turn, session, adapted.seeded(seed))

    def _measure(self, turn: Turn, session: Session, case: Case) -> None:
        figures = session.measure(case)
        self._results.measurements.append(Measurement(turn.peer.name, case.name, turn.round_index, figures))
        times = {"TTFT": figures.ttft_ms, "TPOT": figures.tpot_ms, "text p99": figures.text_ttft_p99_ms}
        shown = "  ".join(f"{name} {value:.1f} ms" for name, value in times.items() if value is not None)
        failed = f"  {figures.failed} FAILED" if figures.failed else ""
        self._say(f"  {case.name:10} {figures.requests_per_s:6.3f} requests/s  {shown}{failed}")
