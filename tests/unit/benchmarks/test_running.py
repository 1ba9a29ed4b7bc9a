"""Services of a measurement: one that ends at once ends the measurement."""

from __future__ import annotations

import time

import pytest

from benchmarks.running import free_addresses, process, wait_until_ready


def test_a_service_that_has_ended_is_not_waited_for() -> None:
    (address,) = free_addresses(1)
    begin = time.monotonic()
    with (
        process(["-c", "import time; time.sleep(60)"]) as living,
        process(["-c", "raise SystemExit(1)"]) as ended,
    ):
        with pytest.raises(SystemExit, match="a service has ended"):
            wait_until_ready(address, [living, ended])
        assert time.monotonic() - begin < 30
