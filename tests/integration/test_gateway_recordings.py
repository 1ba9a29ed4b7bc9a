"""Recordings through the gateway, as the services behind it see them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, InvalidRequestError, MediaTooLargeError, UnsupportedMediaError
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, Stack, running_stack
from tests.integration.test_gateway_videos import ask, body, image, post

HEARING = {media_pb2.MODALITY_IMAGE: 3, media_pb2.MODALITY_AUDIO: 2}
SONG = b"RIFF\0\0\0\0WAVE song"
DATA = base64.b64encode(SONG).decode()
PART = "messages[0].content[0]"


def heard(data: str = DATA, **fields: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav", **fields}}


def by_url(url: str = f"data:audio/wav;base64,{DATA}") -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack([ScriptedLlm(limits=HEARING)]) as stack:
        yield stack


@pytest.mark.parametrize(
    "part",
    [
        heard(),
        heard(format="mp3"),
        heard(format="anything"),
        heard(format=None),
        heard(f"data:audio/wav;base64,{DATA}"),
        heard("\n".join([DATA[:8], DATA[8:]])),
        {"input_audio": {"data": DATA, "format": "wav"}},
        by_url(),
        by_url(f"DATA:;base64,{DATA}"),
        {"audio_url": f"data:audio/x-wav;base64,{DATA}"},
        {"type": "audio_url", "audio_url": f"data:audio/wav;base64,{DATA}", "uuid": "song"},
    ],
    ids=str,
)
async def test_every_form_of_the_part_is_the_same_item(stack: Stack, part: dict[str, Any]) -> None:
    (item,) = await ask(stack, body(part, {"type": "text", "text": "?"}))
    assert (item.modality, item.form, item.settings) == (
        media_pb2.MODALITY_AUDIO,
        media_pb2.MEDIA_FORM_FILE,
        "",
    )
    assert stack.encoders[0].payloads[item.key] == SONG
    (again,) = await ask(stack, body(heard()))
    assert again.key == item.key


async def test_a_file_and_a_picture_beside_it(tmp_path: Path) -> None:
    (tmp_path / "song.txt").write_bytes(SONG)
    url = (tmp_path / "song.txt").as_uri()
    async with running_stack([ScriptedLlm(limits=HEARING)], allowed_local_media_path=tmp_path) as stack:
        picture, song = await ask(stack, body(image(), by_url(url)))
        assert [picture.modality, song.modality] == [media_pb2.MODALITY_IMAGE, media_pb2.MODALITY_AUDIO]
        assert stack.encoders[0].payloads[song.key] == SONG


async def test_embeddings_of_a_recording(stack: Stack) -> None:
    for value in ("eHh4eA==", {"audio_embeds": "eHh4eA=="}):
        (item,) = await ask(stack, body({"type": "audio_embeds", "audio_embeds": value}))
        assert (item.modality, item.form) == (media_pb2.MODALITY_AUDIO, media_pb2.MEDIA_FORM_EMBEDDINGS)
        message = media_pb2.PrecomputedEmbeddings.FromString(stack.encoders[0].payloads[item.key])
        assert [(field.name, field.data) for field in message.fields] == [("audio_embeds", b"xxxx")]


@pytest.mark.parametrize(
    ("part", "status", "param"),
    [
        ({"type": "input_audio"}, 400, f"{PART}.input_audio"),
        ({"type": "input_audio", "input_audio": None}, 400, f"{PART}.input_audio"),
        ({"type": "input_audio", "input_audio": DATA}, 400, f"{PART}.input_audio"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, 400, f"{PART}.input_audio.data"),
        (heard(data=""), 400, f"{PART}.input_audio.data"),
        (heard(data="@@@@"), 400, f"{PART}.input_audio.data"),
        (heard(data="http://127.0.0.1/song.wav"), 400, f"{PART}.input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": 5}}, 400, f"{PART}.input_audio.data"),
        (heard(format=3), 400, f"{PART}.input_audio.format"),
        (heard(format="x" * 65), 400, f"{PART}.input_audio.format"),
        (heard(speed=2), 400, f"{PART}.input_audio.speed"),
        ({**heard(), "speed": 2}, 400, f"{PART}.speed"),
        (by_url(""), 400, f"{PART}.audio_url"),
        (by_url("ftp://127.0.0.1/song.wav"), 400, f"{PART}.audio_url"),
        (by_url("http://127.0.0.1:9/song.wav"), 400, f"{PART}.audio_url"),
        (by_url("file:///etc/passwd"), 400, f"{PART}.audio_url"),
        (by_url("data:audio/wav;base64,"), 400, f"{PART}.audio_url"),
        ({"type": "audio_url", "audio_url": {}}, 400, f"{PART}.audio_url.url"),
        ({"type": "audio_embeds", "audio_embeds": 5}, 400, f"{PART}.audio_embeds"),
        ({"type": "audio_embeds", "audio_embeds": "@@"}, 400, f"{PART}.audio_embeds"),
    ],
    ids=str,
)
async def test_parts_of_a_wrong_form(stack: Stack, part: dict[str, Any], status: int, param: str) -> None:
    answer = await post(stack, body(part))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"] and error["type"]
    await ask(stack, body(heard()))


async def test_a_model_without_ears_says_what_it_takes() -> None:
    async with running_stack() as stack:
        for part, path in (
            (heard(), "input_audio.data"),
            (by_url(), "audio_url"),
            ({"type": "audio_embeds", "audio_embeds": "eA=="}, "audio_embeds"),
        ):
            answer = await post(stack, body(part))
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "unsupported_media")
            assert "no audio parts; it takes: text, image" in error["message"]
            assert error["param"] == f"{PART}.{path}"
        await ask(stack, body(image()))


async def test_limits_of_recordings() -> None:
    async with running_stack([ScriptedLlm(limits=HEARING)], limit_mm_per_prompt="audio=1") as stack:
        await ask(stack, body(heard(), image()))
        answer = await post(stack, body(heard(), by_url()))
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "audio", "too_many_audios")


async def test_sizes_of_recordings_are_their_own() -> None:
    large = base64.b64encode(SONG + bytes(300_000)).decode()
    limits = {"max_media_mib": 0.1, "max_audio_mib": 0.5}
    async with running_stack([ScriptedLlm(limits=HEARING)], **limits) as stack:
        await ask(stack, body(heard(large)))
        huge = base64.b64encode(SONG + bytes(600_000)).decode()
        answer = await post(stack, body(heard(huge)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "media_too_large")
        assert (await post(stack, body(image(f"data:image/png;base64,{large}")))).status_code == 413


@pytest.mark.parametrize(
    ("fault", "status", "param"),
    [
        (BadMediaError("the recording has no samples"), 400, f"{PART}.input_audio.data"),
        (MediaTooLargeError("the recording lasts longer"), 413, f"{PART}.input_audio.data"),
        (UnsupportedMediaError("MIDI is not accepted"), 415, f"{PART}.input_audio.data"),
        (
            InvalidRequestError("expected true or false", param="item.settings.truncation"),
            400,
            "mm_processor_kwargs.truncation",
        ),
    ],
)
async def test_refusals_of_the_encoder_name_what_is_to_blame(
    fault: Exception, status: int, param: str
) -> None:
    encoder = ScriptedEncoder(refuse_with=fault)  # type: ignore[arg-type]
    llm = ScriptedLlm(limits=HEARING, family="qwen2_audio")
    asked = body(heard(), mm_processor_kwargs={"truncation": "yes"})
    async with running_stack([llm], [encoder], trust_request_mm_kwargs=True) as stack:
        answer = await post(stack, asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_settings_go_to_the_modality_that_takes_them() -> None:
    llm = ScriptedLlm(limits=HEARING, family="qwen2_audio")
    async with running_stack([llm], trust_request_mm_kwargs=True) as stack:
        (plain,) = await ask(stack, body(heard()))
        (item,) = await ask(stack, body(heard(), mm_processor_kwargs={"truncation": True}))
        assert json.loads(item.settings) == {"truncation": True}
        assert item.key != plain.key
        answer = await post(stack, body(heard(), mm_processor_kwargs={"max_pixels": 5}))
        assert answer.json()["error"]["param"] == "mm_processor_kwargs.max_pixels"


async def test_rows_of_recordings_are_counted_apart(stack: Stack) -> None:
    details = (await post(stack, body(heard(), image(), heard()))).json()["usage"]["prompt_tokens_details"]
    assert (details["audio_tokens"], details["image_tokens"], details["video_tokens"]) == (6, 3, 0)
    assert details["multimodal_tokens"] == {"image": 3, "audio": 6}
