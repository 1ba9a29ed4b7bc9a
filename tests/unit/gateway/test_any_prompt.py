"""No JSON value in any place of a completion request is anything but accepted or a typed refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.completion_schema import CompletionRequest, parse_completion_request
from gateway.fields import COMPLETION_REFUSED, INERT
from gateway.raw_prompts import raw_prompts, to_raw_request
from shared.errors import InvalidRequestError
from tests.unit.gateway.test_any_json import VALUES

MORE: list[object] = [*VALUES, [1, 2], ["a", [3]], [[1], [2]], {"prompt": "a"}, {"prompt_token_ids": [1]}]


def bodies() -> Iterator[object]:
    yield from MORE
    for value in MORE:
        for name in {*CompletionRequest.model_fields, *INERT, *COMPLETION_REFUSED}:
            yield {"prompt": "a", name: value}
        for place in places(value):
            yield {"prompt": place}
            yield {"prompt": [place]}
            if isinstance(place, dict):
                yield place


def places(value: Any) -> Iterator[Any]:
    """Objects of a prompt with a value in each of their places."""
    for name in ("prompt", "prompt_token_ids", "multi_modal_data", "multi_modal_uuids"):
        yield {"prompt": "a", name: value}
        yield {"encoder_prompt": {"prompt": "a", name: value}, "decoder_prompt": "b"}
    for name in ("encoder_prompt", "decoder_prompt"):
        yield {name: value}
        yield {name: {"prompt": value}}
    for modality in ("image", "video", "audio"):
        yield {"prompt": "a", "multi_modal_data": {modality: value}}
        yield {"prompt": "a", "multi_modal_data": {modality: [value]}}
        for field in ("url", "data", "format", "detail", f"{modality}_embeds"):
            yield {"prompt": "a", "multi_modal_data": {modality: {"data": "aaaa", field: value}}}


def test_any_value_is_taken_or_refused_with_its_place() -> None:
    taken = refused = 0
    for body in bodies():
        try:
            request = parse_completion_request(body)
            for prompt in raw_prompts(request):
                to_raw_request(request, prompt, [], request_id="r", max_model_len=9)
                taken += 1
        except InvalidRequestError as error:
            assert error.message
            assert isinstance(body, dict) is (error.param is not None), (body, error.message)
            refused += 1
    assert taken > 100
    assert refused > 100
