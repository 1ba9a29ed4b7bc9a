"""Which replica an item or a conversation goes to. Pure.

Rendezvous hashing: every (name, replica) pair has a weight, and a name prefers
replicas by falling weight. A replica that comes or goes moves only the names that
it gains or held, and all gateways agree without talking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

# A conversation leaves the replica that knows its prefix when that has this many
# more requests to serve than the idlest: a cached prefix saves one prefill, a long
# queue costs many.
_AFFINITY_SLACK = 4


class Placed(Protocol):
    """What can be chosen."""

    @property
    def address(self) -> str: ...


class Loaded(Placed, Protocol):
    """What can be chosen by load."""

    @property
    def pending_count(self) -> int: ...


P = TypeVar("P", bound=Placed)
L = TypeVar("L", bound=Loaded)


def by_preference(name: str, replicas: Sequence[P]) -> list[P]:
    """Orders replicas for a name, the preferred first; the same order everywhere."""
    return sorted(replicas, key=lambda replica: _weight(name, replica.address), reverse=True)


def by_load(name: str, replicas: Sequence[L]) -> list[L]:
    """Orders replicas by preference, those much busier than the idlest moved to the end."""
    if not replicas:
        return []
    bound = min(replica.pending_count for replica in replicas) + _AFFINITY_SLACK
    ordered = by_preference(name, replicas)
    return sorted(ordered, key=lambda replica: max(0, replica.pending_count - bound))


def _weight(name: str, address: str) -> bytes:
    return hashlib.sha256(f"{address}\n{name}".encode()).digest()
