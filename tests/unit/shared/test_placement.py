"""The same name finds the same replica, and a change moves few names."""

from __future__ import annotations

from dataclasses import dataclass

from shared.placement import by_load, by_preference


@dataclass(frozen=True)
class Place:
    address: str
    pending_count: int = 0


PLACES = [Place(f"10.0.0.{n}:50051") for n in range(5)]
NAMES = [f"name {n}" for n in range(1000)]


def test_order_does_not_depend_on_how_replicas_were_found() -> None:
    for name in NAMES[:20]:
        assert by_preference(name, PLACES) == by_preference(name, PLACES[::-1])


def test_names_spread_over_all() -> None:
    firsts = [by_preference(name, PLACES)[0] for name in NAMES]
    assert all(120 < firsts.count(place) < 280 for place in PLACES)


def test_a_replica_that_leaves_moves_only_its_own_names() -> None:
    for name in NAMES:
        order = by_preference(name, PLACES)
        assert by_preference(name, PLACES[1:]) == [place for place in order if place != PLACES[0]]


def test_load_wins_over_preference_only_when_it_matters() -> None:
    name = NAMES[0]
    preferred, other = by_preference(name, PLACES[:2])
    assert by_load(name, [Place(preferred.address, 4), other])[0].address == preferred.address
    assert by_load(name, [Place(preferred.address, 5), other])[0] == other
    assert by_load(name, []) == []
