"""Addresses behind names: every caller gets an answer that was looked up for it."""

from __future__ import annotations

import asyncio
import time

import pytest

from encoder_service.addresses import AllowedAddresses


class NameServer:
    """What names stand for just now, after a delay or an error.

    Attributes:
        asked: the names of all look-ups, in their order.
    """

    def __init__(self, **hosts: str | None) -> None:
        self.hosts = hosts
        self.delay_s = 0.0
        self.asked: list[str] = []

    async def __call__(self, address: str) -> frozenset[str]:
        self.asked.append(address)
        await asyncio.sleep(self.delay_s)
        host, _, port = address.rpartition(":")
        found = self.hosts[host]
        if found is None:
            raise OSError("no such name")
        return frozenset(f"{ip}:{port}" for ip in found.split())


async def test_callers_at_once_share_one_look_up_and_all_get_its_answer() -> None:
    names = NameServer(llm="10.0.0.1 10.0.0.2")
    names.delay_s = 0.1
    allowed = AllowedAddresses(["llm:1"], names)
    answers = await asyncio.gather(*(allowed.allow(f"10.0.0.{1 + n % 2}:1") for n in range(20)))
    assert answers == [True] * 20
    assert names.asked == ["llm:1"]


async def test_a_caller_who_leaves_takes_nothing_from_the_others() -> None:
    names = NameServer(llm="10.0.0.1")
    names.delay_s = 0.2
    allowed = AllowedAddresses(["llm:1"], names)
    leaving, staying = (asyncio.create_task(allowed.allow("10.0.0.1:1")) for _ in range(2))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert await staying
    assert names.asked == ["llm:1"]


async def test_a_replica_that_appears_right_after_a_look_up_is_found() -> None:
    names = NameServer(llm="10.0.0.1")
    allowed = AllowedAddresses(["llm:1"], names)
    assert await allowed.allow("10.0.0.1:1")
    names.hosts["llm"] = "10.0.0.1 10.0.0.2"
    assert await allowed.allow("10.0.0.2:1")


async def test_unknown_addresses_make_no_storm_of_look_ups() -> None:
    names = NameServer(llm="10.0.0.1")
    allowed = AllowedAddresses(["llm:1"], names)
    started = time.monotonic()
    for _ in range(2):
        answers = await asyncio.gather(*(allowed.allow(f"10.0.0.{n}:1") for n in range(2, 50)))
        assert not any(answers)
    assert time.monotonic() - started > 0.9
    assert names.asked == ["llm:1"] * 2


async def test_a_look_up_that_fails_keeps_the_old_answer_of_its_name_alone() -> None:
    names = NameServer(one="10.0.0.1", two="10.0.0.2")
    allowed = AllowedAddresses(["one:1", "two:1"], names)
    assert await allowed.allow("10.0.0.1:1")
    names.hosts.update(one=None, two="10.0.0.3")
    assert await allowed.allow("10.0.0.3:1")
    assert await allowed.allow("10.0.0.1:1")
    assert not await allowed.allow("10.0.0.2:1")


async def test_addresses_of_the_setting_are_answered_while_a_name_server_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = NameServer(llm="10.0.0.1")
    names.hosts["10.0.0.9"] = "10.0.0.9"
    names.delay_s = 60
    allowed = AllowedAddresses(["llm:1", "10.0.0.9:1"], names)
    unknown = asyncio.create_task(allowed.allow("10.0.0.1:1"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(0.5):
        assert await allowed.allow("10.0.0.9:1")
        assert await allowed.allow("llm:1")
    async with asyncio.timeout(4):
        assert not await unknown
    assert "llm:1 cannot be looked up" in caplog.text
    # The one that still runs is waited for again; a second would hold a second thread.
    again = asyncio.create_task(allowed.allow("10.0.0.1:1"))
    await asyncio.sleep(0.1)
    assert names.asked.count("llm:1") == 1
    await allowed.close()
    assert (await asyncio.gather(again, return_exceptions=True)) != [True]
