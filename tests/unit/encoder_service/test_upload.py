"""Headers and payloads: everything that can be refused early is, and nothing is cut silently."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from encoder_service.upload import (
    EncodeHeader,
    EncodeRequest,
    UploadRules,
    receive_header,
    receive_payload,
)
from protos.media.v1 import media_pb2
from shared.errors import (
    InvalidRequestError,
    MediaTooLargeError,
    PerceptError,
    UnknownModelError,
    UnsupportedMediaError,
)

RULES = UploadRules(frozenset({"tiny", "other"}), frozenset({media_pb2.MODALITY_IMAGE}), max_byte_count=1000)


def header(**changes: Any) -> EncodeHeader:
    item = {
        "key": "0" * 64,
        "modality": media_pb2.MODALITY_IMAGE,
        "form": media_pb2.MEDIA_FORM_FILE,
        "settings": "",
    }
    item.update({name: changes.pop(name) for name in list(changes) if name in item})
    fields = {"byte_count": 10, "model": "tiny", **changes}
    return EncodeHeader(item=media_pb2.MediaItem(**item), **fields)


def test_good_headers_pass() -> None:
    for good in (header(), header(model=""), header(model="other"), header(byte_count=1000)):
        RULES.check(good)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (header(model="elsewhere"), UnknownModelError),
        (header(byte_count=0), InvalidRequestError),
        (header(byte_count=-1), InvalidRequestError),
        (header(byte_count=1001), MediaTooLargeError),
        (header(key="0" * 63), InvalidRequestError),
        (header(key="G" * 64), InvalidRequestError),
        (header(key="A" * 64), InvalidRequestError),
        (header(modality=media_pb2.MODALITY_UNSPECIFIED), InvalidRequestError),
        (header(modality=media_pb2.MODALITY_AUDIO), UnsupportedMediaError),
        (header(modality=99), UnsupportedMediaError),
        (header(form=media_pb2.MEDIA_FORM_UNSPECIFIED), InvalidRequestError),
        (header(form=99), InvalidRequestError),
        (header(settings=" " * 5000), InvalidRequestError),
        (EncodeHeader(), InvalidRequestError),
    ],
)
def test_bad_headers_are_refused(bad: EncodeHeader, error: type[PerceptError]) -> None:
    with pytest.raises(error) as caught:
        RULES.check(bad)
    assert type(caught.value) is error


class Frames:
    """A stream of frames that counts how many were read."""

    def __init__(self, *frames: EncodeRequest) -> None:
        self._frames = frames
        self.read_count = 0

    async def __aiter__(self) -> AsyncIterator[EncodeRequest]:
        for frame in self._frames:
            self.read_count += 1
            yield frame


def chunk(data: bytes) -> EncodeRequest:
    return EncodeRequest(chunk=data)


async def test_the_header_comes_first() -> None:
    assert (await receive_header(aiter(Frames(EncodeRequest(header=header()))))).byte_count == 10
    for frames in (Frames(), Frames(chunk(b"x")), Frames(EncodeRequest())):
        with pytest.raises(InvalidRequestError, match="header"):
            await receive_header(aiter(frames))


async def test_chunks_of_any_size_make_up_the_payload() -> None:
    frames = Frames(chunk(b"abc"), chunk(b""), chunk(b"d"), chunk(b"efghij"))
    assert await receive_payload(aiter(frames), 10) == b"abcdefghij"


@pytest.mark.parametrize(
    "frames",
    [
        Frames(),
        Frames(chunk(b"abc")),
        Frames(chunk(b"abcdefghijk")),
        Frames(chunk(b"abcdefghij"), chunk(b"k")),
        Frames(chunk(b"abcde"), EncodeRequest(header=header()), chunk(b"fghij")),
        Frames(chunk(b"abcde"), EncodeRequest(), chunk(b"fghij")),
    ],
)
async def test_a_wrong_payload_is_read_to_its_end_and_refused(frames: Frames) -> None:
    with pytest.raises(InvalidRequestError):
        await receive_payload(aiter(frames), 10)
    assert frames.read_count == len(frames._frames)


async def test_a_chunk_above_the_limit_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        await receive_payload(aiter(Frames(chunk(bytes(1024 * 1024 + 1)))), 1024 * 1024 + 1)


async def test_a_payload_without_end_is_not_read_for_ever() -> None:
    frames = Frames(*[chunk(bytes(1024 * 1024))] * 10)
    with pytest.raises(InvalidRequestError):
        await receive_payload(aiter(frames), 10)
    assert frames.read_count == 2


@pytest.mark.parametrize("frame", [chunk(b""), EncodeRequest(), EncodeRequest(header=header())])
async def test_frames_without_bytes_are_not_read_for_ever(frame: EncodeRequest) -> None:
    frames = Frames(chunk(b"abcdefghij"), *[frame] * 5000)
    with pytest.raises(InvalidRequestError):
        await receive_payload(aiter(frames), 10)
    assert frames.read_count < 1100
