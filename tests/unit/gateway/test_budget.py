"""Bytes that are taken are given back, once."""

from __future__ import annotations

import pytest

from gateway.budget import ByteBudget, Holding
from shared.errors import MediaTooLargeError, OverloadedError


def test_all_requests_share_one_number_of_bytes() -> None:
    budget = ByteBudget(100)
    first, second = Holding(budget, 1000), Holding(budget, 1000)
    first.take_body(60)
    with pytest.raises(OverloadedError):
        second.take_media(41)
    second.take_media(40)
    assert budget.held == 100
    first.free()
    second.take_body(60)
    second.free()
    assert budget.held == 0


def test_the_media_of_one_request_have_a_bound_of_their_own() -> None:
    holding = Holding(ByteBudget(1000), 50)
    holding.take_body(100)
    holding.take_media(30)
    with pytest.raises(MediaTooLargeError, match="50 bytes together"):
        holding.take_media(21)
    holding.take_media(20)


def test_a_body_that_was_thrown_away_counts_no_more() -> None:
    budget = ByteBudget(100)
    holding = Holding(budget, 100)
    holding.take_body(60)
    holding.take_media(30)
    holding.drop_body()
    assert budget.held == 30
    holding.free()
    holding.free()
    assert budget.held == 0


def test_nothing_is_taken_after_the_end() -> None:
    budget = ByteBudget(100)
    holding = Holding(budget, 100)
    holding.free()
    for take in (holding.take_body, holding.take_media):
        with pytest.raises(OverloadedError):
            take(1)
    assert budget.held == 0
