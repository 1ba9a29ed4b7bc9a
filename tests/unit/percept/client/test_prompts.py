"""Prompts and messages of scripts, on the wire."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from percept.client.items import ItemSettings
from percept.client.messages import build_conversation
from percept.client.prompts import build_prompt
from percept.client.sampling import SamplingParams, sampling_name
from protos.llm.v1 import llm_service_pb2
from protos.media.v1 import media_pb2
from shared.errors import PerceptError

PIXELS = np.zeros((2, 3, 3), np.uint8)


def test_text_tokens_and_media() -> None:
    request, items = build_prompt("hello", SamplingParams(), "m")
    assert (request.text, request.model, items) == ("hello", "m", [])
    assert not request.HasField("top_logprobs")
    request, _ = build_prompt({"prompt_token_ids": np.array([3, 4])}, SamplingParams(), "")
    assert list(request.token_ids.ids) == [3, 4]
    request, items = build_prompt(
        {
            "prompt": "<image><video>",
            "multi_modal_data": {"video": PIXELS[None], "image": [PIXELS, PIXELS]},
            "mm_processor_kwargs": {"num_crops": 4},
            "multi_modal_uuids": {"image": ["a", "b"]},
        },
        SamplingParams(),
        "",
    )
    assert [item.param for item in items] == [
        "multi_modal_data.image[0]",
        "multi_modal_data.image[1]",
        "multi_modal_data.video",
    ]
    assert [item.settings for item in request.media] == ['{"num_crops":4}'] * 3
    assert request.media[2].modality == media_pb2.MODALITY_VIDEO


def test_an_encoders_and_a_decoders_prompt() -> None:
    request, items = build_prompt(
        {
            "encoder_prompt": {"prompt": "<image>", "multi_modal_data": {"image": PIXELS}},
            "decoder_prompt": {"prompt_token_ids": [5]},
            "mm_processor_kwargs": {"num_crops": 4},
        },
        SamplingParams(),
        "",
    )
    assert request.encoder_prompt.text == "<image>"
    assert list(request.token_ids.ids) == [5]
    assert [(item.param, item.wire.settings) for item in items] == [
        ("encoder_prompt.multi_modal_data.image", '{"num_crops":4}')
    ]
    request, _ = build_prompt({"encoder_prompt": "read", "decoder_prompt": None}, SamplingParams(), "")
    assert (request.encoder_prompt.text, request.WhichOneof("prompt"), request.text) == ("read", "text", "")
    request, _ = build_prompt({"decoder_prompt": "on"}, SamplingParams(), "")
    assert (request.HasField("encoder_prompt"), request.text) == (True, "on")


def test_an_empty_list_of_tokens_is_not_text() -> None:
    request, _ = build_prompt({"prompt_token_ids": []}, SamplingParams(), "")
    assert request.WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (3, "prompt"),
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "cache_salt": "b"}, "cache_salt"),
        ({"encoder_prompt": 3}, "encoder_prompt"),
        ({"encoder_prompt": {"multi_modal_data": {"image": 3}}}, "encoder_prompt.multi_modal_data.image"),
        ({"decoder_prompt": {"multi_modal_data": {}}}, "multi_modal_data"),
        ({"prompt": "a", "decoder_prompt": "b"}, "prompt"),
        ({"prompt": "a", "multi_modal_data": [PIXELS]}, "multi_modal_data"),
        ({"prompt": "a", "multi_modal_data": {"images": PIXELS}}, "multi_modal_data.images"),
        ({"prompt": "a", "media_io_kwargs": {"image": {}}}, "media_io_kwargs.image"),
        ({"prompt": "a", "media_io_kwargs": {"video": {"fps": object()}}}, "media_io_kwargs"),
        ({"prompt": "a", "multi_modal_data": {"image": [PIXELS, 3]}}, "multi_modal_data.image[1]"),
    ],
)
def test_what_is_no_prompt(prompt: Any, param: str) -> None:
    with pytest.raises(PerceptError) as caught:
        build_prompt(prompt, SamplingParams(), "")
    assert caught.value.param == param


def test_every_parameter_reaches_the_wire() -> None:
    sampling = SamplingParams(
        n=2,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=7,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logit_bias={3: -1.0},
        allowed_token_ids=[5, 6],
        max_tokens=9,
        min_tokens=2,
        stop="end",
        stop_token_ids=[4],
        ignore_eos=True,
        include_stop_str_in_output=True,
        logprobs=0,
    )
    request, _ = build_prompt("a", sampling, "")
    assert request.top_logprobs == 0 and request.HasField("top_logprobs")
    for message in (request.sampling, request.stopping):
        unset = {field.name for field in message.DESCRIPTOR.fields} - {
            f.name for f, _ in message.ListFields()
        }
        assert not unset
    assert list(request.stopping.stop_strings) == ["end"]
    plain, _ = build_prompt("a", SamplingParams(), "")
    # What is not given is the service's to choose.
    assert {field.name for field, _ in plain.sampling.ListFields()} == {"choice_count"}
    assert not plain.stopping.ListFields()


def test_errors_speak_of_our_names() -> None:
    names = {
        "sampling.choice_count": "n",
        "stopping.max_token_count": "max_tokens",
        "stopping.stop_strings[1]": "stop[1]",
        "sampling.top_p": "top_p",
    }
    assert {path: sampling_name(path) for path in names} == names
    fields = SamplingParams.__dataclass_fields__
    for message in (llm_service_pb2.SamplingParameters, llm_service_pb2.StoppingParameters):
        assert all(sampling_name(field.name) in fields for field in message.DESCRIPTOR.fields)


def test_messages_and_their_media() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    rows = base64.b64encode(b"rows").decode()
    conversation, items = build_conversation(
        [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    "look: ",
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "image_url", "image_url": url},
                    {"type": "image", "image": PIXELS},
                    {"type": "video", "video": PIXELS[None]},
                    {
                        "type": "image_embeds",
                        "image_embeds": {"image_embeds": rows, "image_grid_thw": [1, 2, 2]},
                    },
                    {"type": "image_embeds", "image_embeds": np.zeros((2, 4), np.float32)},
                    {"type": "text", "text": "what?"},
                ],
            },
        ],
        ItemSettings({"a": 1}, {"video": {"fps": 2}}),
    )
    assert [message.role for message in conversation.messages] == ["system", "user"]
    parts = conversation.messages[1].parts
    assert [part.text or part.media_index for part in parts] == ["look: ", 0, 1, 2, 3, 4, 5, "what?"]
    assert items[0].payload == items[1].payload == b"picture"
    assert [item.wire.settings for item in items] == [
        *['{"a":1}'] * 3,
        '{"a":1,"media_io":{"fps":2}}',
        "",
        "",
    ]
    fields = media_pb2.PrecomputedEmbeddings.FromString(items[4].payload).fields
    assert {field.name: field.data for field in fields} == {
        "image_embeds": b"rows",
        "image_grid_thw": b"[1,2,2]",
    }
    assert items[2].param == "messages[1].content[3].image"


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (3, "messages[0].content[0]"),
        ({"type": "tool"}, "messages[0].content[0].type"),
        ({"type": "text"}, "messages[0].content[0]"),
        ({"type": "image"}, "messages[0].content[0].image"),
        ({"type": "image_url", "image_url": {}}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": "http://example.org/a"}, "messages[0].content[0].image_url"),
        ({"type": "image_embeds", "image_embeds": "***"}, "messages[0].content[0].image_embeds"),
    ],
)
def test_what_is_no_part(part: Any, param: str) -> None:
    with pytest.raises(PerceptError) as caught:
        build_conversation([{"role": "user", "content": [part]}], ItemSettings())
    assert caught.value.param == param


@pytest.mark.parametrize("message", [3, {}, {"role": "user"}, {"role": "user", "content": 3}])
def test_what_is_no_message(message: Any) -> None:
    with pytest.raises(PerceptError) as caught:
        build_conversation([message], ItemSettings())
    assert caught.value.param is not None and caught.value.param.startswith("messages[0]")
