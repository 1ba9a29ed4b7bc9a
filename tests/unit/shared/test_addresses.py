"""HOST:PORT to literal addresses."""

from __future__ import annotations

import asyncio

import pytest

from shared.rpc.addresses import resolve


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:8443", "[::1]:8443"),
        ("[0:0:0:0:0:0:0:1]:8443", "[::1]:8443"),
    ],
)
def test_a_literal_address_is_written_in_its_shortest_form(address: str, literal: str) -> None:
    assert asyncio.run(resolve(address)) == {literal}


def test_a_name_stands_for_addresses() -> None:
    found = asyncio.run(resolve("localhost:50051"))
    assert found
    assert found <= {"127.0.0.1:50051", "[::1]:50051"}


@pytest.mark.parametrize(
    "address",
    ["no-such-host.invalid:1", "no port", "127.0.0.1:", f"{'a' * 300}:1", f"{'a' * 64}.example:1", "a..b:1"],
)
def test_what_does_not_resolve_is_an_os_error(address: str) -> None:
    with pytest.raises(OSError):
        asyncio.run(resolve(address))
