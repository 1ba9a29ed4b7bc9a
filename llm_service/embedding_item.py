"""What the embedding store knows of one item: who wants it and what it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llm_service.embedding_push import Push
    from shared.errors import PerceptError

Worth = tuple[float, float, float]
"""Sorts items, the worthiest first: age of the oldest needy waiter, then its index there."""

WORTHLESS: Worth = (math.inf, math.inf, math.inf)


class Waiter(Protocol):
    """A sequence that wants items.

    Attributes:
        age: sorts waiters, the oldest first; no two are equal.
    """

    age: tuple[int, int]

    def ask(self, key: str) -> None:
        """Have the item delivered."""
        ...

    def layout_known(self, key: str) -> None:
        """The item's layout can be asked for now."""
        ...

    def fail(self, error: PerceptError) -> None:
        """The item can never be had."""
        ...


@dataclass(slots=True)
class Want:
    """One waiter's interest in an item.

    Attributes:
        index: place in the waiter's prompt where the item is needed next.
        needs: whether rows of it are still to be prefilled.
        missing: whether the waiter can do no more without a delivery.
    """

    index: int
    needs: bool = True
    missing: bool = False


@dataclass(slots=True, eq=False)
class StoredItem:
    """One item that somebody wants or that is here.

    Attributes:
        push: the delivery that fills it or has filled it.
        closing: the region that the engine is to let go of, or None.
        asked: the waiter that was asked to have it delivered.
        passed_over: waiters that were asked and had nothing delivered.
        last_use: counts up; the smallest was used longest ago.
    """

    key: str
    wants: dict[Waiter, Want] = field(default_factory=dict)
    push: Push | None = None
    closing: int | None = None
    closing_byte_count: int = 0
    asked: Waiter | None = None
    asked_at: float = 0.0
    passed_over: set[Waiter] = field(default_factory=set)
    last_use: int = 0

    @property
    def worth(self) -> Worth:
        """Age and index of the oldest want that still needs rows."""
        needy = [(*waiter.age, want.index) for waiter, want in self.wants.items() if want.needs]
        return min(needy, default=WORTHLESS)

    def eviction_order(self) -> tuple[bool, bool, tuple[float, ...], int]:
        """Sorts items, the first to go first.

        Unwanted ones, then those that their waiters have used, both by their
        last use; then those of the youngest waiters.
        """
        worth = self.worth
        needed = worth != WORTHLESS
        youngest_first = tuple(-part for part in worth) if needed else ()
        return (bool(self.wants), needed, youngest_first, self.last_use)
