"""Values of scripts become items without loss, and what is none is named."""

from __future__ import annotations

import base64
import io
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from percept.client.items import Item, ItemSettings, canonical_settings
from percept.client.loaded import is_pil, is_torch_tensor, rank
from percept.client.media import guess_modality, items_of
from protos.media.v1 import media_pb2
from shared.content_key import content_key
from shared.errors import BadMediaError, InvalidRequestError, MediaFetchError, PerceptError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
SAMPLES = np.random.default_rng(2).integers(-(2**15), 2**15, 500).astype(np.float32) / np.float32(32768)
"""Multiples of what 16 bits tell apart."""
FRAMES = np.random.default_rng(1).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)


def items(value: Any, modality: Any = "image", settings: str = "") -> list[Item]:
    return items_of(value, modality, settings, "here")


def pixels_of(payload: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(payload)))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "value",
    [Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS), PIXELS[:, ::-1][:, ::-1]],
    ids=["PIL", "array", "tensor", "strided array"],
)
def test_pixels_travel_without_loss(value: Any) -> None:
    (item,) = items(value)
    assert (pixels_of(item.payload) == PIXELS).all()
    assert item.wire.form == media_pb2.MEDIA_FORM_FILE
    assert item.wire.key == content_key(item.wire.modality, item.wire.form, "", item.payload)
    assert item.param == "here"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_that_png_has_stay(mode: str) -> None:
    picture = Image.fromarray(PIXELS).convert("L").convert(mode) if mode == "I;16" else None
    picture = picture or Image.fromarray(PIXELS).convert(mode)
    (item,) = items(picture)
    assert Image.open(io.BytesIO(item.payload)).mode == mode
    assert (pixels_of(item.payload) == np.asarray(picture)).all()


def test_other_modes_become_rgb() -> None:
    (item,) = items(Image.fromarray(PIXELS).convert("CMYK"))
    assert Image.open(io.BytesIO(item.payload)).mode == "RGB"


def test_grey_arrays() -> None:
    for grey in (PIXELS[:, :, 0], PIXELS[:, :, :1]):
        (item,) = items(grey)
        assert (pixels_of(item.payload) == PIXELS[:, :, 0]).all()


def test_several_pictures_keep_their_order_and_places() -> None:
    found = items([PIXELS, [Image.fromarray(PIXELS[::-1])]])
    assert [item.param for item in found] == ["here[0]", "here[1][0]"]
    assert (pixels_of(found[1].payload) == PIXELS[::-1]).all()
    stacked = items(FRAMES)
    assert [item.param for item in stacked] == [f"here[{index}]" for index in range(4)]
    assert (pixels_of(stacked[2].payload) == FRAMES[2]).all()


def test_files_go_as_they_are(tmp_path: Path) -> None:
    data = png(PIXELS)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for value in (data, bytearray(data), path, str(path), path.as_uri(), url, url.replace("data", "DATA", 1)):
        (item,) = items(value)
        assert item.payload == data


@pytest.mark.parametrize(
    "value",
    [FRAMES, torch.from_numpy(FRAMES), list(FRAMES), [Image.fromarray(frame) for frame in FRAMES]],
    ids=["array", "tensor", "list of arrays", "list of PIL"],
)
@pytest.mark.parametrize("rate", [None, 12.5])
def test_frames_are_one_video(value: Any, rate: float | None) -> None:
    (item,) = items(value if rate is None else (value, {"fps": rate}), "video")
    assert (item.wire.modality, item.wire.form) == (media_pb2.MODALITY_VIDEO, media_pb2.MEDIA_FORM_FRAMES)
    frames = media_pb2.FrameList.FromString(item.payload)
    assert frames.frames_per_second == (rate or 0)
    assert all((pixels_of(one) == other).all() for one, other in zip(frames.frames, FRAMES, strict=True))


def test_several_videos() -> None:
    found = items([FRAMES, FRAMES[:2], b"a file"], "video")
    assert [item.wire.form for item in found] == [
        media_pb2.MEDIA_FORM_FRAMES,
        media_pb2.MEDIA_FORM_FRAMES,
        media_pb2.MEDIA_FORM_FILE,
    ]


@pytest.mark.parametrize("kind", ["video/jpeg", "video/jpg", "Video/PNG", "video/png;a=b"])
def test_a_frame_list_of_a_data_url(kind: str) -> None:
    pieces = [base64.b64encode(png(frame)).decode() for frame in FRAMES]
    (item,) = items(f"data:{kind};base64," + ",".join(pieces), "video")
    assert list(media_pb2.FrameList.FromString(item.payload).frames) == [png(frame) for frame in FRAMES]


def test_a_file_of_a_data_url_is_one_piece() -> None:
    (item,) = items("data:video/mp4;base64,AAAA", "video")
    assert (item.wire.form, item.payload) == (media_pb2.MEDIA_FORM_FILE, bytes(3))
    with pytest.raises(BadMediaError):
        items("data:video/mp4;base64,AAAA,AAAA", "video")


def test_settings_are_part_of_the_key() -> None:
    plain, other = items(PIXELS)[0], items(PIXELS, settings=canonical_settings({"b": 1, "a": 2}))[0]
    assert other.wire.settings == '{"a":2,"b":1}'
    assert plain.wire.key != other.wire.key
    assert canonical_settings({"a": 2, "b": 1}) == other.wire.settings
    assert canonical_settings({}) == canonical_settings(None) == ""


def test_settings_of_one_modality() -> None:
    settings = ItemSettings({"a": 1, "image": {"b": 2}, "video": {"a": 3}}, {"video": {"fps": 2}})
    assert settings["image"] == '{"a":1,"b":2}'
    assert settings["video"] == '{"a":3,"media_io":{"fps":2}}'
    assert settings["audio"] == '{"a":1}'
    with pytest.raises(InvalidRequestError) as caught:
        ItemSettings({"image": 3})
    assert caught.value.param == "mm_processor_kwargs.image"


@pytest.mark.parametrize("settings", [{"a": object()}, {"a": float("nan")}], ids=["object", "nan"])
def test_settings_that_are_no_json(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        canonical_settings(settings)
    assert caught.value.param == "mm_processor_kwargs"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: 3, InvalidRequestError),
        (lambda: PIXELS.astype(np.int32), BadMediaError),
        (lambda: PIXELS.transpose(2, 0, 1), BadMediaError),
        (lambda: PIXELS[:0], BadMediaError),
        (lambda: Image.fromarray(PIXELS[:, :, 0].astype(np.float32)), BadMediaError),
        (lambda: b"", BadMediaError),
        (lambda: "none.png", MediaFetchError),
        (lambda: "https://example.org/a.png", MediaFetchError),
        (lambda: "data:image/png;base64", BadMediaError),
        (lambda: "data:image/png;base64,***", BadMediaError),
        (lambda: {}, PerceptError),
        (lambda: {"image_embeds": ["a", "b"]}, PerceptError),
    ],
)
def test_what_is_no_picture_is_named(make: Callable[[], Any], kind: type[PerceptError]) -> None:
    with pytest.raises(kind) as caught:
        items([PIXELS, make()])
    assert caught.value.param is not None and caught.value.param.startswith("here[1]")


def test_a_video_without_frames() -> None:
    with pytest.raises(BadMediaError):
        items(FRAMES[:0], "video")
    with pytest.raises(InvalidRequestError):
        items((FRAMES, {"fps": "fast"}), "video")


@pytest.mark.parametrize(
    ("value", "modality"),
    [
        (PIXELS, "image"),
        (Image.fromarray(PIXELS), "image"),
        (FRAMES, "video"),
        ("a.PNG", "image"),
        (Path("b.mp4"), "video"),
        ("c.wav", "audio"),
        ("c.mp3", "audio"),
        ((SAMPLES, 16_000), "audio"),
        ({"array": SAMPLES, "sampling_rate": 16_000}, "audio"),
        (b"ID3\4\0\0\0\0\0\0", "audio"),
        (b"\xff\xfb\x90\x64", "audio"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"fLaC", "audio"),
        (b"OggS", "audio"),
        (b"FORM\0\0\0\0AIFF", "audio"),
        (b"\0\0\0\x20ftypM4A ", "audio"),
        ({"audio_embeds": 1}, "audio"),
        ("d", "image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\0\0\0\x20ftypavif", "image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\x1aE\xdf\xa3\0\0\0\0", "video"),
        ({"video_embeds": 1}, "video"),
        ({"image_embeds": 1}, "image"),
    ],
)
def test_a_value_says_what_it_is_of(value: Any, modality: str) -> None:
    assert guess_modality(value) == modality


def test_a_library_that_another_thread_is_importing_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "torch", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert rank(PIXELS) is None and not is_torch_tensor(1) and not is_pil(2)


def test_prompts_may_share_a_picture_whose_file_is_not_read_yet(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.effect_noise((400, 400), 90).save(path)
    for _ in range(20):
        shared = Image.open(path)
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _, picture=shared: items(picture)[0].payload, range(8)))
        assert len(set(made)) == 1


def test_a_picture_whose_file_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.effect_noise((400, 400), 90).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadMediaError, match="cannot be read"):
        items(Image.open(path))


@pytest.mark.parametrize(
    ("value", "channels"),
    [
        ((SAMPLES, 16_000), 1),
        ((SAMPLES.astype(np.float64), 16_000.0), 1),
        ({"array": SAMPLES, "sampling_rate": 16_000}, 1),
        ({"raw": SAMPLES, "sampling_rate": 16_000}, 1),
        ((np.stack([SAMPLES, SAMPLES]), 16_000), 2),
        ((np.stack([SAMPLES, SAMPLES], axis=1), 16_000), 2),
        (((SAMPLES * 32768).astype(np.int16), 16_000), 1),
        (((SAMPLES * 2.0**31).astype(np.int32), 16_000), 1),
        ((torch.from_numpy(SAMPLES), 16_000), 1),
    ],
)
def test_samples_travel_without_loss(value: Any, channels: int) -> None:
    (item,) = items(value, "audio")
    assert (item.wire.modality, item.wire.form) == (media_pb2.MODALITY_AUDIO, media_pb2.MEDIA_FORM_FILE)
    samples, rate = soundfile.read(io.BytesIO(item.payload), dtype="float32", always_2d=True)
    assert (samples.shape, rate) == ((len(SAMPLES), channels), 16_000)
    assert all(np.array_equal(samples[:, channel], SAMPLES) for channel in range(channels))


def test_several_recordings() -> None:
    made = items([(SAMPLES, 16_000), b"RIFF....WAVE", (SAMPLES, 8_000)], "audio")
    assert [item.param for item in made] == ["here[0]", "here[1]", "here[2]"]
    assert len({item.wire.key for item in made}) == 3


@pytest.mark.parametrize(
    "value",
    [
        (SAMPLES, 0),
        (SAMPLES, 44_100.5),
        (SAMPLES, 2**40),
        (SAMPLES[:0], 16_000),
        (np.zeros((2, 2, 2), np.float32), 16_000),
        (np.zeros((100, 100), np.float32), 16_000),
        (np.zeros(10, np.uint8), 16_000),
        (np.zeros(10, np.complex64), 16_000),
        5,
        object(),
    ],
)
def test_what_is_no_recording_is_named(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        items(value, "audio")
    assert caught.value.param == "here"
