"""Frames that are read by hand say what the message says."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from encoder_service.delivery import chunk_frames
from llm_service.put_frames import RowChunk, _read_chunk, read_put_frame
from protos.llm.v1 import embedding_service_pb2 as pb
from protos.media.v1 import media_pb2
from protos.tensor.v1 import tensor_pb2
from shared.families.base import EncodedItem, MediaInfo, RawTensor

chunks = st.builds(
    tensor_pb2.TensorChunk,
    tensor_index=st.integers(-(2**31), 2**31 - 1),
    byte_offset=st.integers(-(2**63), 2**63 - 1),
    data=st.binary(max_size=300),
)


def framed(chunk: tensor_pb2.TensorChunk) -> bytes:
    return pb.PutEmbeddingsRequest(chunk=chunk).SerializeToString()


def by_message(frame: bytes) -> tuple[int, int, bytes] | pb.PutEmbeddingsRequest | None:
    try:
        message = pb.PutEmbeddingsRequest.FromString(frame)
    except DecodeError:
        return None
    if message.WhichOneof("frame") != "chunk":
        return message
    return message.chunk.tensor_index, message.chunk.byte_offset, message.chunk.data


def by_hand(frame: bytes) -> tuple[int, int, bytes] | pb.PutEmbeddingsRequest | None:
    try:
        read = read_put_frame(frame)
    except DecodeError:
        return None
    return (read.tensor_index, read.byte_offset, bytes(read.data)) if isinstance(read, RowChunk) else read


@given(chunk=chunks)
def test_chunks(chunk: tensor_pb2.TensorChunk) -> None:
    assert by_hand(framed(chunk)) == (chunk.tensor_index, chunk.byte_offset, chunk.data)


@given(chunk=chunks, data=st.data())
def test_damaged_frames(chunk: tensor_pb2.TensorChunk, data: st.DataObject) -> None:
    frame = bytearray(framed(chunk))
    place = data.draw(st.integers(0, len(frame) - 1))
    end = data.draw(st.integers(0, len(frame)))
    frame[place] = data.draw(st.integers(0, 255))
    for damaged in (bytes(frame), bytes(frame[:end]), bytes(frame[end:] + frame[:end])):
        assert by_hand(damaged) == by_message(damaged)


@given(frame=st.binary(max_size=60))
def test_any_bytes(frame: bytes) -> None:
    assert by_hand(frame) == by_message(frame)
    assert by_hand(b"\x12" + frame) == by_message(b"\x12" + frame)


def test_what_an_encoder_sends_is_not_copied() -> None:
    info = MediaInfo(row_count=2)
    item = EncodedItem(info, {name: RawTensor("float32", (2, 3), bytes(24)) for name in ("embeds", "deep")})
    frames = list(chunk_frames(item, first_row=7))
    read = [_read_chunk(frame) for frame in frames]
    assert all(one is not None and one.data.obj is frame for one, frame in zip(read, frames, strict=True))
    assert [(one.tensor_index, one.byte_offset, len(one.data)) for one in read if one] == [
        (0, 84, 24),
        (1, 84, 24),
    ]


def test_headers_stay_messages() -> None:
    header = pb.PutEmbeddingsRequest(header=media_pb2.EmbeddingsHeader(key="k"))
    assert read_put_frame(header.SerializeToString()) == header
    assert read_put_frame(b"") == pb.PutEmbeddingsRequest()
    with pytest.raises(DecodeError):
        read_put_frame(b"\x12\x05\x1a\x09")
