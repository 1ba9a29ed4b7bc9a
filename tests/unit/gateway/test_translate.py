"""From a request to the wire contract and back to the request's own names."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.content import EmbeddingsPart, MediaUrlPart, TextPart, parse_content
from gateway.media import ResolvedItem
from gateway.schemas import parse_chat_request
from gateway.translate import (
    CHAT_NAMES,
    affinity,
    check_items,
    to_generate_request,
    to_prompt,
    to_request_param,
)
from protos.llm.v1 import llm_service_pb2
from protos.media.v1 import media_pb2
from shared.errors import InvalidRequestError


def item(key: str, param: str = "messages[0].content[0].image_url") -> ResolvedItem:
    return ResolvedItem(media_pb2.MediaItem(key=key * 64), b"payload", param)


def translated(items: list[ResolvedItem] | None = None, **fields: Any) -> llm_service_pb2.GenerateRequest:
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    request = parse_chat_request(body)
    return to_generate_request(request, to_prompt(request), items or [], request_id="r", max_model_len=9)


def test_what_was_not_said_stays_unset() -> None:
    request = translated()
    for field in ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "choice_count"):
        assert request.sampling.HasField(field) == (field == "choice_count")
    assert not request.stopping.HasField("max_token_count")
    assert not request.HasField("top_logprobs")
    assert not request.conversation.HasField("add_generation_prompt")


def test_who_shows_nothing_before_the_end_lets_deltas_wait() -> None:
    assert translated().deltas_may_wait
    assert not translated(stream=True).deltas_may_wait


def test_zero_is_said() -> None:
    request = translated(temperature=0, top_k=0, seed=0, logprobs=True)
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("top_k")
    assert request.sampling.HasField("seed")
    assert request.HasField("top_logprobs")


def test_every_sampling_and_stopping_field_arrives() -> None:
    request = translated(
        temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=-5, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.5, logit_bias={"7": 2}, n=4, max_tokens=9, max_completion_tokens=8, min_tokens=2,
        stop=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True, include_stop_str_in_output=True,
        logprobs=True, top_logprobs=5,
    )  # fmt: skip
    assert request.sampling == llm_service_pb2.SamplingParameters(
        temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=-5, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.5, logit_bias={7: 2.0}, choice_count=4,
    )  # fmt: skip
    assert request.stopping == llm_service_pb2.StoppingParameters(
        max_token_count=8, min_token_count=2, stop_strings=["a", "b"], stop_token_ids=[1, 2], ignore_eos=True,
        include_stop_string=True,
    )  # fmt: skip
    assert request.top_logprobs == 5


def test_continuing_the_last_message_opens_no_turn() -> None:
    conversation = translated(continue_final_message=True).conversation
    assert conversation.continue_final_message
    assert conversation.HasField("add_generation_prompt")
    assert not conversation.add_generation_prompt


def test_every_turn_of_a_conversation_has_its_affinity() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,a"}}
    first = [{"role": "system", "content": "S"}, {"role": "user", "content": [picture, "What?"]}]
    later = [*first, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
    one = affinity(translated([item("a")], messages=first))
    assert one == affinity(translated([item("a")], messages=later))
    assert one != affinity(translated([item("b")], messages=first))
    assert one != affinity(translated([item("a")], messages=first[1:]))


def test_names_of_fields_go_back() -> None:
    items = [item("a"), item("b", "messages[2].content[1].image_embeds")]
    names = {
        "stopping.max_token_count": "max_completion_tokens",
        "sampling.temperature": "temperature",
        "stopping.stop_strings[0]": "stop[0]",
        "sampling.choice_count": "n",
        "prompt": "messages",
        "messages[1].role": "messages[1].role",
        "media": "messages",
        "media[1].settings": "messages[2].content[1].image_embeds",
        "media[7]": "messages[7]",
    }
    assert {name: to_request_param(name, items, CHAT_NAMES) for name in names} == names
    assert to_request_param(None, items, CHAT_NAMES) is None


def test_parts_keep_their_order_and_path() -> None:
    parts = parse_content(
        ["a", {"image_url": "data:,x"}, {"image_embeds": "eA=="}, {"type": "text", "text": "b"}],
        "messages[3].content",
    )
    assert parts == [
        TextPart("a"),
        MediaUrlPart("image", "data:,x", "messages[3].content[1].image_url"),
        EmbeddingsPart("image", {"image_embeds": "eA=="}, "messages[3].content[2].image_embeds"),
        TextPart("b"),
    ]


def test_videos_by_every_name() -> None:
    url = "data:,x"
    paths = {
        "video_url": [{"type": "video_url", "video_url": {"url": url}}, {"video_url": url}],
        "input_video": [{"type": "input_video", "input_video": url}, {"input_video": {"url": url}}],
    }
    for name, parts in paths.items():
        for part in parts:
            assert parse_content([part], "c") == [MediaUrlPart("video", url, f"c[0].{name}")]
    mixed = {"type": "input_video", "video_url": url}
    assert parse_content([mixed], "c") == [MediaUrlPart("video", url, "c[0].video_url")]
    embedded = {"type": "video_embeds", "video_embeds": {"video_embeds": "eA==", "video_grid_thw": [1, 2, 2]}}
    assert parse_content([embedded], "c") == [
        EmbeddingsPart("video", embedded["video_embeds"], "c[0].video_embeds")  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video_url"}, "c[0].video_url"),
        ({"type": "video_url", "video_url": {}}, "c[0].video_url.url"),
        ({"type": "video_url", "video_url": ""}, "c[0].video_url"),
        ({"type": "video_url", "video_url": 3}, "c[0].video_url"),
        ({"type": "video_url", "video_url": "data:,x", "fps": 2}, "c[0].fps"),
        ({"type": "video_url", "image_url": "data:,x"}, "c[0].image_url"),
        ({"type": "input_video", "input_video": "data:,x", "video_url": "data:,x"}, "c[0]"),
        ({"type": "video_embeds", "video_embeds": []}, "c[0].video_embeds"),
        ({"type": "video_embeds", "video_embeds": {"video_embeds": 3}}, "c[0].video_embeds.video_embeds"),
    ],
)
def test_videos_of_a_wrong_form(part: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_content([part], "c")
    assert caught.value.param == param


def test_items_are_counted_by_modality() -> None:
    picture, video = MediaUrlPart("image", "data:,x", "p"), MediaUrlPart("video", "data:,x", "v")
    check_items([picture, picture, video], {"image": 2, "video": 1}, {})
    for media, param, code in (
        ([picture] * 3, "image", "too_many_images"),
        ([video, picture, video], "data.video", "too_many_videos"),
    ):
        with pytest.raises(InvalidRequestError, match="At most") as caught:
            check_items(media, {"image": 2, "video": 1}, {"video": "data.video"})
        assert (caught.value.param, caught.value.code) == (param, code)
    with pytest.raises(InvalidRequestError, match="no video parts; it takes: text, image") as caught:
        check_items([picture, video], {"image": 2}, {})
    assert (caught.value.param, caught.value.code) == ("v", "unsupported_media")
