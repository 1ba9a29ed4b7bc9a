"""Videos to frames: every container, what is taken, and what is refused."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from encoder_service.media.frame_list import decode_frame_list
from encoder_service.media.video import decode_video
from encoder_service.media.video_limits import VideoLimits
from encoder_service.media.video_sampling import Sampling
from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, MediaTooLargeError, PerceptError, UnsupportedMediaError
from shared.families.base import VideoClip
from tests.unit.encoder_service.videos import KINDS, level, make_sound, make_video, picture

LIMITS = VideoLimits()


def decode(payload: bytes, limits: VideoLimits = LIMITS, **settings: Any) -> VideoClip:
    return decode_video(payload, Sampling.of(settings, limits.max_frame_count), limits)


def levels(clip: VideoClip) -> list[int]:
    """The brightness of the lower half of each frame."""
    return [int(value) for value in clip.frames[:, -8:].mean((1, 2, 3)).round()]


def near(clip: VideoClip, slack: int) -> bool:
    expected = np.array([level(place) for place in clip.indices])
    return bool((abs(np.array(levels(clip)) - expected) <= slack).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_frames_that_were_asked_for(kind: str) -> None:
    # Lossy: which frame it is, to the bit, is the next test's.
    slack = 30 if kind == "gif" else 12
    payload = make_video(60, **KINDS[kind])
    for settings, indices in (
        ({}, tuple(np.linspace(0, 59, 32, dtype=int).tolist())),
        ({"num_frames": 5}, (0, 14, 29, 44, 59)),
        ({"num_frames": 1}, (0,)),
        ({"num_frames": -1}, tuple(range(60))),
        ({"fps": 2}, (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55)),
        ({"fps": 2, "num_frames": 3}, (0, 25, 55)),
        ({"fps": 1000}, tuple(range(60))),
    ):
        clip = decode(payload, **settings)
        assert clip.indices == indices, (kind, settings)
        assert clip.frames.shape == (len(indices), 48, 64, 3) and clip.frames.dtype == np.uint8
        assert (clip.frame_count, clip.frames_per_second) == (60, 10.0)
        assert near(clip, slack), (kind, settings, levels(clip))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_decoder_that_decodes_all(kind: str) -> None:
    payload = make_video(50, **KINDS[kind])
    with av.open(io.BytesIO(payload)) as whole:
        expected = [frame.to_ndarray(format="rgb24") for frame in whole.decode(video=0)]
    for settings in ({"num_frames": -1}, {"num_frames": 4}, {"num_frames": 7}, {"fps": 1}):
        clip = decode(payload, **settings)
        assert (clip.frames == np.stack([expected[place] for place in clip.indices])).all(), settings


def test_fewer_frames_than_asked_for_are_all() -> None:
    assert decode(make_video(3)).indices == (0, 1, 2)
    assert decode(make_video(1)).indices == (0,)


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_rotation_is_applied(angle: int) -> None:
    payload = make_video(2, rotation=angle)
    clip = decode(payload)
    assert clip.frames.shape[1:3] == ((48, 64) if angle in (0, 180) else (64, 48))
    expected = np.rot90(picture(0), angle // 90)
    assert abs(clip.frames[0].astype(int) - expected).mean() < 8


def test_transparency_is_laid_on_white() -> None:
    frames = [np.zeros((48, 64, 4), np.uint8) for _ in range(3)]
    for frame in frames:
        frame[:, :32] = (200, 0, 0, 255)
    vp9 = make_video(
        frames=frames, container="webm", codec="libvpx-vp9", pixels="yuva420p", options={"auto-alt-ref": "0"}
    )
    gif = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    others[0].putpixel((0, 0), (0, 0, 0, 0))
    first.save(gif, "GIF", save_all=True, append_images=others, disposal=2, duration=100)
    for payload in (vp9, gif.getvalue()):
        clip = decode(payload)
        assert (clip.frames[:, :, 36:] > 250).all()
        assert (abs(clip.frames[:, 4:, 4:28].astype(int) - (200, 0, 0)) < 20).all()


def test_variable_rates_are_sampled_by_time() -> None:
    stamps = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 30, 40, 50]
    clip = decode(make_video(14, stamps=stamps, container="matroska"), fps=1)
    # Seconds 0 to 5; nothing new is to be seen in between.
    assert clip.indices == (0, 9, 10, 11, 12, 13)
    assert clip.frames_per_second == pytest.approx(13 / 5)


def test_a_container_whose_rate_is_wrong_is_not_believed() -> None:
    payload = make_video(21, stamps=[10 * place for place in range(21)], container="mp4")
    assert decode(payload).frames_per_second == pytest.approx(1.0, rel=0.1)


def test_fragmented_files_and_files_without_a_count() -> None:
    payload = make_video(30, container_options={"movflags": "frag_keyframe+empty_moov"})
    assert decode(payload, num_frames=3).indices == (0, 14, 29)


def refused(payload: bytes, kind: type[PerceptError], text: str, limits: VideoLimits = LIMITS) -> None:
    with pytest.raises(kind, match=text) as caught:
        decode(payload, limits)
    assert type(caught.value) is kind
    assert "0x" not in caught.value.message and "avcodec" not in caught.value.message


def test_what_is_no_accepted_video_is_refused_by_name() -> None:
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    refused(b"hello, I am a text named film.mp4", BadMediaError, "not a video")
    refused(b"", BadMediaError, "not a video")
    refused(png.getvalue(), UnsupportedMediaError, "PNG picture")
    refused(b"#EXTM3U\n#EXT-X-VERSION:3\nfile:///etc/passwd\n", UnsupportedMediaError, "playlist")
    refused(b"ffconcat version 1.0\nfile /etc/passwd\n", UnsupportedMediaError, "list of files")
    refused(make_video(3, container="avi", codec="mpeg4"), UnsupportedMediaError, "AVI")
    refused(make_video(3, container="mpegts"), UnsupportedMediaError, "transport stream")
    refused(make_video(3, container="matroska", codec="ffv1"), UnsupportedMediaError, "ffv1")
    refused(make_sound(), BadMediaError, "no video stream")


@pytest.mark.parametrize("kind", KINDS)
def test_cut_files_are_refused(kind: str) -> None:
    payload = make_video(20, **KINDS[kind])
    for part in (0.98, 0.6, 0.3, 0.1):
        refused(payload[: int(len(payload) * part)], BadMediaError, "truncated|broken")


def test_broken_frames_are_refused() -> None:
    payload = bytearray(make_video(40, container="mp4", codec="libx264"))
    start = payload.index(b"mdat") + 800
    payload[start : start + 300] = bytes(300)
    refused(bytes(payload), BadMediaError, "broken")


def test_limits_hold() -> None:
    payload = make_video(20)
    refused(payload, MediaTooLargeError, "lasts 2 s", replace(LIMITS, max_duration_s=1.5))
    refused(payload, MediaTooLargeError, "64 x 48", replace(LIMITS, max_frame_pixel_count=3000))
    refused(payload, MediaTooLargeError, "20 frames of 64 x 48", replace(LIMITS, max_pixel_count=60_000))
    costly = replace(LIMITS, max_decoded_pixel_count=60_000)
    refused(payload, MediaTooLargeError, "have to be decoded", costly)
    few = replace(LIMITS, max_frame_count=4)
    assert decode(payload, few).indices == (0, 6, 12, 19)
    assert decode(payload, few, num_frames=-1).indices == (0, 6, 12, 19)
    assert decode(payload, few, fps=5).indices == (0, 6, 12, 18)


def test_a_huge_frame_in_a_small_file_is_refused_before_it_is_decoded() -> None:
    big = make_video(1, container="mp4", codec="libx264", size=(4096, 4096), options={"preset": "ultrafast"})
    assert len(big) < 100_000
    refused(big, MediaTooLargeError, "4096 x 4096")
    # The container says less than what the stream then has.
    place = big.index(b"avc1", 100) + 28
    assert big[place : place + 4] == b"\x10\x00\x10\x00"
    refused(big[:place] + b"\0\x40\0\x40" + big[place + 4 :], MediaTooLargeError, "4096 x 4096")


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4) + kind + content


def many_streams(count: int) -> bytes:
    """An MP4 of nothing but streams."""
    track = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", b""))))
    return box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", box(b"mvhd", bytes(100)) + track * count)


def many_tracks(count: int) -> bytes:
    """A WebM of nothing but streams."""
    entry = element(b"\xae", b"\xd7\x81\x01\x73\xc5\x81\x01\x83\x81\x01\x86\x85V_VP8")
    segment = element(b"\x16\x54\xae\x6b", entry * count) + element(b"\x1f\x43\xb6\x75", b"\xe7\x81\0")
    return element(b"\x1a\x45\xdf\xa3", b"\x42\x82\x84webm") + element(b"\x18\x53\x80\x67", segment)


def element(name: bytes, content: bytes) -> bytes:
    return name + b"\x01" + len(content).to_bytes(7) + content


@pytest.mark.parametrize("make", [many_streams, many_tracks])
def test_a_million_streams(make: Callable[[int], bytes]) -> None:
    payload = make(1_000_000)
    started = time.perf_counter()
    refused(payload, MediaTooLargeError, "too many streams")
    # A second at most on an idle machine.
    assert time.perf_counter() - started < 10
    refused(make(33), MediaTooLargeError, "too many streams")


def test_several_streams() -> None:
    refused(many_tracks(32), BadMediaError, "no frames|broken")


def jpeg(pixels: np.ndarray[Any, Any], kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def frame_list(frames: list[bytes], **fields: Any) -> bytes:
    return media_pb2.FrameList(frames=frames, **fields).SerializeToString()


def decode_list(payload: bytes, limits: VideoLimits = LIMITS, **settings: Any) -> VideoClip:
    return decode_frame_list(payload, Sampling.of(settings, limits.max_frame_count), limits)


def test_lists_of_frames() -> None:
    pngs = [jpeg(picture(place), "PNG") for place in range(40)]
    clip = decode_list(frame_list(pngs))
    assert clip.indices == tuple(np.linspace(0, 39, 32, dtype=int).tolist())
    assert (clip.frame_count, clip.frames_per_second) == (40, 1.0)
    assert (clip.frames == np.stack([picture(place) for place in clip.indices])).all()
    assert decode_list(frame_list(pngs), num_frames=-1).indices == tuple(range(40))
    thin = decode_list(
        frame_list(pngs[:4], frames_per_second=8.0, indices=[0, 5, 10, 30], frame_count=32), fps=2
    )
    assert thin.indices == (0, 5, 10)
    assert (thin.frame_count, thin.frames_per_second) == (32, 8.0)
    assert thin.times == (0.0, 0.625, 1.25)


def test_lists_of_frames_that_make_no_sense() -> None:
    png = jpeg(picture(0), "PNG")
    other = jpeg(picture(0, (32, 32)), "PNG")
    for payload, kind, text in (
        (b"\xff\xff", BadMediaError, "cannot be read"),
        (frame_list([]), BadMediaError, "no frames"),
        (frame_list([png, other]), BadMediaError, "one size"),
        (frame_list([png, png[:-30]]), BadMediaError, "truncated"),
        (frame_list([png, b"GIF89a"]), BadMediaError, "can be read"),
        (frame_list([png, png], indices=[1, 1], frame_count=4), BadMediaError, "larger than the one before"),
        (frame_list([png, png], indices=[0]), BadMediaError, "as many"),
        (frame_list([png, png], indices=[-1, 1]), BadMediaError, "between"),
        (frame_list([png, png], indices=[0, 5], frame_count=5), BadMediaError, "between"),
        (frame_list([png], frames_per_second=float("nan")), BadMediaError, "frames_per_second"),
        (frame_list([png], frames_per_second=-1), BadMediaError, "frames_per_second"),
        (frame_list([png] * 769), MediaTooLargeError, "769 frames"),
        (frame_list([png], indices=[9999], frame_count=10_000), MediaTooLargeError, "lasts"),
    ):
        with pytest.raises(kind, match=text):
            decode_list(payload)
