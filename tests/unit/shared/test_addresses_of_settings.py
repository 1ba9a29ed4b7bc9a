"""Where a service listens is HOST:PORT, and anything else is refused before it starts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from encoder_service.settings import EncoderSettings
from gateway.settings import GatewaySettings
from llm_service.settings import LlmSettings
from shared.rpc.addresses import checked_address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:50051", "[::1]:65535", ":8000"])
def test_addresses_are_taken_as_they_are(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize("address", ["", "50051", "host", "host:", "host:x", "host:65536", "::1:80", "h:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        checked_address(address)


def test_every_service_checks_where_it_listens() -> None:
    for settings_class, given in (
        (EncoderSettings, {"model": "m"}),
        (LlmSettings, {"model": "m"}),
        (GatewaySettings, {}),
    ):
        with pytest.raises(ValidationError, match="HOST:PORT"):
            settings_class(listen="50051", **given)  # type: ignore[arg-type]
