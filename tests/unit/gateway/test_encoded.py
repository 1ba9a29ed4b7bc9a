"""Base64 and data URLs, strict where leniency could change the bytes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import encoded
from gateway.encoded import decode_base64, decode_data_url, decode_frames
from shared.errors import BadMediaError, MediaTooLargeError

LIMIT = 1_000_000


@given(st.binary(min_size=1, max_size=200))
def test_round_trip(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text, LIMIT) == data
    assert decode_base64("\n".join(text), LIMIT) == data
    assert decode_data_url("data:image/png;base64," + text, LIMIT) == data
    assert decode_data_url("data:image/png;base64," + text.replace("+", "%2B"), LIMIT) == data


def test_pieces_join_without_a_seam() -> None:
    data = bytes(range(256)) * 6000
    assert decode_base64(base64.b64encode(data).decode(), 2_000_000) == data
    seam = base64.b64encode(b"x" * (encoded._PIECE_LENGTH // 4 * 3 - 1)).decode()
    assert len(seam) == encoded._PIECE_LENGTH
    with pytest.raises(BadMediaError):
        decode_base64(seam + seam, 2_000_000)


@pytest.mark.parametrize(
    "text", ["", " ", "a", "ab", "abc", "ab=", "=", "ab==ab==", "abcd=", "ab!d", "äbcd", "ab-_"]
)
def test_broken_base64(text: str) -> None:
    with pytest.raises(BadMediaError):
        decode_base64(text, LIMIT)


def test_too_large() -> None:
    with pytest.raises(MediaTooLargeError):
        decode_base64(base64.b64encode(b"x" * 11).decode(), 10)
    with pytest.raises(MediaTooLargeError):
        decode_data_url("data:,%78" + "x" * 10, 10)
    assert decode_base64(base64.b64encode(b"x" * 10).decode(), 10) == b"x" * 10


def test_data_url_heads() -> None:
    assert decode_data_url("DATA:IMAGE/PNG;x=y;BASE64,YQ==", LIMIT) == b"a"
    assert decode_data_url("data:,a%20b", LIMIT) == b"a b"
    for url in ("data:", "data:image/png;base64", "data:" + "x" * 2000 + ",a", "data:,"):
        with pytest.raises(BadMediaError):
            decode_data_url(url, LIMIT)


def test_frames_of_a_video() -> None:
    frames = [b"\xff\xd8one", b"\xff\xd8", b"three" * 100]
    texts = [base64.b64encode(frame).decode() for frame in frames]
    for head in ("data:video/jpeg;base64,", "DATA:video/JPEG; base64,", "data:video/png;a=b;base64,"):
        assert decode_frames(head + ",".join(texts), LIMIT) == frames
    assert decode_frames("data:video/jpeg;base64," + texts[0].replace("/", "%2F"), LIMIT) == frames[:1]
    assert decode_frames("data:video/mp4;base64," + texts[0], LIMIT) is None
    assert decode_frames("data:video/jpeg," + texts[0], LIMIT) is None
    for broken in ("", ",", texts[0] + ",", "," + texts[0], texts[0] + ",!!!!"):
        with pytest.raises(BadMediaError):
            decode_frames("data:video/jpeg;base64," + broken, LIMIT)
    size = sum(map(len, frames))
    assert decode_frames("data:video/jpeg;base64," + ",".join(texts), size) == frames
    for most in (size - 1, len(frames[0]), 1):
        with pytest.raises(MediaTooLargeError):
            decode_frames("data:video/jpeg;base64," + ",".join(texts), most)


def test_frames_beyond_all_bounds_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "_MAX_FRAMES", 3)
    assert decode_frames("data:video/jpeg;base64,AAAA,AAAA,AAAA", LIMIT) == [bytes(3)] * 3
    with pytest.raises(MediaTooLargeError, match="more than 3 frames"):
        decode_frames("data:video/jpeg;base64,AAAA,AAAA,AAAA,!", LIMIT)
