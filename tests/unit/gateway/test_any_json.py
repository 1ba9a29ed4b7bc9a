"""No JSON value in any place of a request is anything but accepted or a typed refusal."""

from __future__ import annotations

import pytest

from gateway.fields import INERT, REFUSED
from gateway.generation_request import StreamOptions
from gateway.item_settings import SettingsRules
from gateway.media_io import MediaIo, VideoIo
from gateway.schemas import ChatCompletionRequest, ChatMessage, parse_chat_request
from gateway.translate import to_prompt
from shared.errors import InvalidRequestError

VALUES: list[object] = [
    None,
    True,
    0,
    -1.5,
    10**40,
    "",
    "x",
    [],
    {},
    [[]],
    [{}],
    [None],
    {"a": []},
    {"type": []},
    {"type": {}},
    {"url": []},
]
PART_FIELDS = (
    "type",
    "text",
    "refusal",
    "image_url",
    "image_embeds",
    "video_url",
    "input_video",
    "video_embeds",
    "detail",
    "uuid",
    "cache_control",
)
PARTS: list[dict[str, object]] = [
    {"type": "text", "text": "a"},
    {"type": "refusal", "refusal": "a"},
    {"type": "image_url", "image_url": {"url": "data:,a"}},
    {"type": "image_embeds", "image_embeds": {"a": "b"}},
    {"type": "video_url", "video_url": {"url": "data:,a"}},
    {"type": "input_video", "input_video": "data:,a"},
    {"type": "video_embeds", "video_embeds": {"a": "b"}},
]


def with_message(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "Hi", **fields}]}


def bodies() -> list[object]:
    fields = {*ChatCompletionRequest.model_fields, *INERT, *REFUSED}
    found: list[object] = list(VALUES)
    for value in VALUES:
        found += [{**with_message(), name: value} for name in fields]
        found += [with_message(**{name: value}) for name in ChatMessage.model_fields]
        found += [
            {**with_message(), "stream": True, "stream_options": {name: value}}
            for name in StreamOptions.model_fields
        ]
        found += [{**with_message(), "media_io_kwargs": {name: value}} for name in MediaIo.model_fields]
        found += [
            {**with_message(), "media_io_kwargs": {"video": {name: value}}} for name in VideoIo.model_fields
        ]
        found.append({**with_message(), "mm_processor_kwargs": {"size": value, "video": {"size": value}}})
        found.append(with_message(content=[value]))
        for part in PARTS:
            found += [with_message(content=[{**part, name: value}]) for name in PART_FIELDS]
        for name in ("url", "detail"):
            found.append(with_message(content=[{"image_url": {"url": "data:,a", name: value}}]))
        found.append(with_message(content=[{"image_embeds": {"a": value}}]))
    return found


def test_any_value_anywhere() -> None:
    accepted = refused = 0
    for body in bodies():
        try:
            chat = parse_chat_request(body)
            to_prompt(chat)
            video = chat.media_io_kwargs.video_values() if chat.media_io_kwargs is not None else None
            SettingsRules(allowed=True).for_request(chat.mm_processor_kwargs, video, None)
        except InvalidRequestError:
            refused += 1
        except Exception as fault:
            pytest.fail(f"{type(fault).__name__}: {fault} of {body}")
        else:
            accepted += 1
    assert accepted > 100
    assert refused > 500
