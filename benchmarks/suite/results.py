"""Everything that a run of the suite has found, and questions to it.

Knows measurements by peer, case and round. Does not know bars, nor how anything is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.figures import Figures
from benchmarks.suite.ratios import Spread, paired_ratios


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case at one peer in one round.

    Attributes:
        peer: its name.
        case: its name.
        round_index: 0, 1, ...
        figures: what came out.
    """

    peer: str
    case: str
    round_index: int
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        named = {"peer": self.peer, "case": self.case, "round": self.round_index}
        return {**named, **self.figures.to_json()}


@dataclass(slots=True)
class Results:
    """What is known so far.

    Attributes:
        machine: what it runs on, and when.
        cases: what was asked, by name.
        measurements: in the order in which they were made.
        limits: of the machine.
        floors: of the model on this machine, in milliseconds.
        programs: what Percept's own measurements gave, by program.
        starts: seconds from a start to ready, by peer.
        troubles: what could not be measured, and why.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    programs: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def series(self, peer: str, case: str, name: str) -> dict[int, float | None]:
        """A figure by round. Rounds in which requests failed are left out: speed by refusing is none."""
        return {
            each.round_index: getattr(each.figures, name)
            for each in self.measurements
            if (each.peer, each.case) == (peer, case) and not each.figures.failed
        }

    def spread(self, peer: str, case: str, name: str) -> Spread | None:
        """A figure over the rounds."""
        values = self.series(peer, case, name).values()
        return Spread.of([value for value in values if value is not None])

    def ratio(self, above: str, below: str, case: str, name: str) -> Spread | None:
        """A figure of one peer over that of another, paired by round."""
        return Spread.of(paired_ratios(self.series(above, case, name), self.series(below, case, name)))

    def peers(self) -> list[str]:
        """Who was measured, in the order of their first measurement."""
        return list(dict.fromkeys(each.peer for each in self.measurements))

    def measured_cases(self) -> list[str]:
        """What was measured, in the order of the cases."""
        found = {each.case for each in self.measurements}
        return [name for name in self.cases if name in found]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": self.machine,
            "cases": self.cases,
            "limits": self.limits,
            "floors_ms": self.floors,
            "measurements": [each.to_json() for each in self.measurements],
            "programs": self.programs,
            "starts_s": self.starts,
            "troubles": self.troubles,
        }
