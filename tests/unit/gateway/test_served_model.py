"""What the gateway says of the model follows what the LLM service last said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.parts import Gateway
from gateway.settings import GatewaySettings
from protos.llm.v1 import llm_service_pb2
from shared.errors import UnavailableError, UnknownModelError


def description(**fields: object) -> llm_service_pb2.GetModelResponse:
    return llm_service_pb2.GetModelResponse(**({"family": "qwen2_vl"} | fields))  # type: ignore[arg-type]


def gateway_of(**settings: object) -> Gateway:
    return Gateway(GatewaySettings(encoder="127.0.0.1:1", llm="127.0.0.1:2", **settings))  # type: ignore[arg-type]


async def test_a_new_description_goes_before_the_old_one() -> None:
    gateway = gateway_of()
    with pytest.raises(UnavailableError):
        gateway.model()
    gateway.llms._model = description(models=["first"], max_model_len=100)
    first = gateway.model()
    assert (gateway.check_model(None), first.fingerprint) == ("first", gateway.model().fingerprint)
    gateway.llms._model = description(models=["second"], max_model_len=200)
    assert gateway.check_model("") == "second"
    assert gateway.metrics.model_name() == "second"
    assert gateway.model().fingerprint != first.fingerprint
    with pytest.raises(UnknownModelError):
        gateway.check_model("first")
    await gateway.close()


async def test_names_of_the_servers_own_go_before_those_of_the_model() -> None:
    gateway = gateway_of(served_model_name=("mine", "also-mine"))
    gateway.llms._model = description(models=["first"])
    assert gateway.check_model(None) == "mine"
    assert gateway.check_model("also-mine") == "also-mine"
    await gateway.close()


def test_settings_that_no_item_could_have_end_the_start() -> None:
    with pytest.raises(ValidationError, match="longer than"):
        gateway_of(mm_processor_kwargs={"max_pixels": "x" * 5000})
