"""Admission: bounds hold, permits come back, and the delay follows the measured rate."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from encoder_service.admission import Admission
from shared.errors import OverloadedError


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_items_above_the_bound_are_refused_until_one_ends() -> None:
    admission = Admission(2, 1000)
    with admission.permit(1):
        with admission.permit(1), pytest.raises(OverloadedError, match="queue"), admission.permit(1):
            pass
        with admission.permit(1):
            assert admission.item_count == 2
    assert admission.item_count == 0


def test_payload_bytes_above_the_bound_are_refused_but_a_lone_item_is_not() -> None:
    admission = Admission(10, 100)
    with (
        admission.permit(500),
        admission.permit(0),
        pytest.raises(OverloadedError, match="payload"),
        admission.permit(1),
    ):
        pass
    with admission.permit(60), admission.permit(40):
        assert admission.item_count == 2


def test_a_failed_item_gives_its_permit_back() -> None:
    admission = Admission(1, 100)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), admission.permit(100):
            raise ValueError("broken")
    assert admission.item_count == 0


def test_the_delay_follows_the_measured_rate() -> None:
    clock = Clock()
    admission = Admission(100, 1000, clock)
    assert admission.retry_after_s() == 1.0
    with ExitStack() as queue:
        for _ in range(40):
            queue.enter_context(admission.permit(0))
        for _ in range(50):
            with admission.permit(0):
                clock.now += 0.25
        assert admission.retry_after_s() == pytest.approx(40 * 0.25 / 2)
        for _ in range(200):
            with admission.permit(0):
                clock.now += 10
        assert admission.retry_after_s() == 30.0
