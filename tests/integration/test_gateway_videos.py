"""Videos and items' settings through the gateway, as the services behind it see them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, InvalidRequestError, MediaTooLargeError, UnsupportedMediaError
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, Stack, running_stack

BOTH = {media_pb2.MODALITY_IMAGE: 3, media_pb2.MODALITY_VIDEO: 2}
MP4 = "data:video/mp4;base64," + base64.b64encode(b"\0\0\0\x20ftypisom film").decode()
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()
FRAMES = [b"\xff\xd8one", b"\xff\xd8two"]
JPEGS = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in FRAMES)


def video(url: str = MP4) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def image(url: str = PNG) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def body(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], **fields}


async def post(stack: Stack, request: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(stack.base_url + "/chat/completions", json=request, timeout=30)


async def ask(stack: Stack, request: dict[str, Any]) -> list[media_pb2.MediaItem]:
    """Asks, and returns the items that the LLM service was told of."""
    answer = await post(stack, request)
    assert answer.status_code == 200, answer.text
    return list(stack.llms[0].requests[-1].media)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack([ScriptedLlm(limits=BOTH)]) as stack:
        yield stack


async def test_a_video_file_and_its_modality(stack: Stack) -> None:
    items = await ask(stack, body(image(), video(), {"type": "text", "text": "?"}))
    assert [item.modality for item in items] == [media_pb2.MODALITY_IMAGE, media_pb2.MODALITY_VIDEO]
    assert [item.settings for item in items] == ["", ""]
    assert {item.form for item in items} == {media_pb2.MEDIA_FORM_FILE}
    assert stack.encoders[0].payloads[items[1].key] == b"\0\0\0\x20ftypisom film"


async def test_the_same_bytes_as_picture_and_as_video_are_two_items(stack: Stack) -> None:
    first, second = await ask(stack, body(image(MP4), video(MP4)))
    assert first.key != second.key


async def test_a_list_of_frames(stack: Stack) -> None:
    (item,) = await ask(stack, body(video(JPEGS)))
    assert (item.form, item.settings) == (media_pb2.MEDIA_FORM_FRAMES, "")
    message = media_pb2.FrameList.FromString(stack.encoders[0].payloads[item.key])
    assert (list(message.frames), message.frames_per_second) == (FRAMES, 0)
    (item,) = await ask(stack, body(video(JPEGS), media_io_kwargs={"video": {"fps": 2}}))
    message = media_pb2.FrameList.FromString(stack.encoders[0].payloads[item.key])
    assert (message.frames_per_second, item.settings) == (2.0, '{"media_io":{"num_frames":-1}}')


async def test_embeddings_of_a_video(stack: Stack) -> None:
    fields = {"video_embeds": "eHh4eA==", "video_grid_thw": [1, 2, 2]}
    part = {"type": "video_embeds", "video_embeds": fields}
    (item,) = await ask(stack, body(part, media_io_kwargs={"video": {"num_frames": 2}}))
    assert (item.modality, item.form) == (media_pb2.MODALITY_VIDEO, media_pb2.MEDIA_FORM_EMBEDDINGS)
    assert item.settings == ""
    message = media_pb2.PrecomputedEmbeddings.FromString(stack.encoders[0].payloads[item.key])
    assert [(field.name, field.data) for field in message.fields] == [
        ("video_embeds", b"xxxx"),
        ("video_grid_thw", b"[1,2,2]"),
    ]


async def test_settings_are_part_of_the_key(stack: Stack) -> None:
    keys = {}
    for name, said in {
        "none": {},
        "32": {"num_frames": 32},
        "8": {"num_frames": 8},
        "2": {"fps": 2},
    }.items():
        picture, clip = await ask(stack, body(image(), video(), media_io_kwargs={"video": said}))
        keys[name] = clip.key
        assert picture.settings == ""
    assert len(set(keys.values())) == 4


async def test_the_servers_settings_and_the_requests() -> None:
    options = {
        "mm_processor_kwargs": '{"max_pixels": 5000, "unheard_of": 1}',
        "media_io_kwargs": '{"video": {"fps": 2}}',
        "trust_request_mm_kwargs": True,
    }
    async with running_stack([ScriptedLlm(limits=BOTH)], **options) as stack:
        picture, clip = await ask(stack, body(image(), video()))
        assert json.loads(picture.settings) == {"max_pixels": 5000}
        assert json.loads(clip.settings)["media_io"] == {"fps": 2}
        picture, clip = await ask(
            stack,
            body(
                image(),
                video(),
                mm_processor_kwargs={"min_pixels": 10},
                media_io_kwargs={"video": {"num_frames": 4}},
            ),
        )
        assert json.loads(picture.settings) == {"max_pixels": 5000, "min_pixels": 10}
        assert json.loads(clip.settings)["media_io"] == {"num_frames": 4}
        refused = await post(stack, body(image(), mm_processor_kwargs={"num_crops": 4}))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "mm_processor_kwargs.num_crops"


@pytest.mark.parametrize(
    ("fault", "status", "param"),
    [
        (BadMediaError("the video has no frames"), 400, "messages[0].content[0].video_url"),
        (MediaTooLargeError("the video lasts 9 s"), 413, "messages[0].content[0].video_url"),
        (UnsupportedMediaError("AVI is not accepted"), 415, "messages[0].content[0].video_url"),
        (
            InvalidRequestError("num_frames is 999", param="item.settings.media_io.num_frames"),
            400,
            "media_io_kwargs.video.num_frames",
        ),
        (
            InvalidRequestError("too small", param="item.settings.max_pixels"),
            400,
            "mm_processor_kwargs.max_pixels",
        ),
        (InvalidRequestError("the key does not match", param="item.key"), 500, None),
    ],
)
async def test_refusals_of_the_encoder_name_what_is_to_blame(
    fault: Exception, status: int, param: str
) -> None:
    encoder = ScriptedEncoder(refuse_with=fault)  # type: ignore[arg-type]
    asked = body(
        video(), media_io_kwargs={"video": {"num_frames": 999}}, mm_processor_kwargs={"max_pixels": 1}
    )
    async with running_stack([ScriptedLlm(limits=BOTH)], [encoder], trust_request_mm_kwargs=True) as stack:
        answer = await post(stack, asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        encoder.refuse_with = None
        assert (await post(stack, asked)).status_code == 200


async def test_the_servers_own_mistake_is_not_the_clients() -> None:
    fault = InvalidRequestError("max_pixels is too small", param="item.settings.max_pixels")
    async with running_stack(
        [ScriptedLlm(limits=BOTH)],
        [ScriptedEncoder(refuse_with=fault)],
        mm_processor_kwargs='{"max_pixels": 1}',
    ) as stack:
        for asked in (body(image()), body(image(), media_io_kwargs={"video": {"num_frames": 2}})):
            answer = await post(stack, asked)
            assert answer.status_code == 500
            assert "server's own settings" in answer.json()["error"]["message"]


async def test_limits_of_each_modality() -> None:
    async with running_stack([ScriptedLlm(limits=BOTH)], limit_mm_per_prompt="image=2,video=1") as stack:
        await ask(stack, body(image(), image(), video()))
        for parts, name, code in (
            ([image()] * 3, "image", "too_many_images"),
            ([video()] * 2, "video", "too_many_videos"),
        ):
            answer = await post(stack, body(*parts))
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, name, code)
            assert "At most" in error["message"]


async def test_a_model_without_videos_says_what_it_takes() -> None:
    async with running_stack() as stack:
        answer = await post(stack, body(video()))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_media")
        assert "no video parts; it takes: text, image" in error["message"]
        assert error["param"] == "messages[0].content[0].video_url"
        await ask(stack, body(image()))


async def test_sizes_of_videos_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(300_000))
    url = (tmp_path / "film.mp4").as_uri()
    options = {"allowed_local_media_path": tmp_path, "max_media_mib": 0.1, "max_video_mib": 0.5}
    async with running_stack([ScriptedLlm(limits=BOTH)], **options) as stack:
        (item,) = await ask(stack, body(video(url)))
        assert len(stack.encoders[0].payloads[item.key]) == 300_012
        answer = await post(stack, body(image(url)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "media_too_large")


async def test_stages_are_told_by_modality(stack: Stack) -> None:
    await ask(stack, body(image(), video()))
    for modality in ("image", "video"):
        labels = {"model_name": "tiny", "modality": modality, "stage": "encode"}
        found = stack.gateway.metrics.registry.get_sample_value("percept:stage_seconds_count", labels)
        assert found == 1
