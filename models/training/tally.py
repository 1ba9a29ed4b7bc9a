"""Counts right answers per skill. Knows nothing about who answered."""

from collections import Counter
from dataclasses import dataclass, field

from models.training.cases import SKILLS


@dataclass
class Tally:
    """Right answers and asked questions per skill, and what was wrong."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, skill: str, question: str, wanted: str, given: str) -> None:
        self.asked[skill] += 1
        if given == wanted:
            self.right[skill] += 1
        else:
            self.wrong.append(f"[{skill}] {question!r}: wanted {wanted!r}, got {given!r}")

    @property
    def accuracy(self) -> float:
        return self.right.total() / max(1, self.asked.total())

    def table(self) -> str:
        known = [*SKILLS, *sorted(set(self.asked) - set(SKILLS))]
        rows = [_row(skill, self.right[skill], self.asked[skill]) for skill in known if self.asked[skill]]
        return "\n".join([*rows, _row("overall", self.right.total(), self.asked.total())])


def _row(name: str, right: int, asked: int) -> str:
    return f"{name:14}{right:6} / {asked:<6}{right / max(1, asked):8.2%}"
