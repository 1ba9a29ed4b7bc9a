"""Frames of `PutEmbeddings` as they come from the wire, their rows not copied.

A message would copy the bytes of a chunk twice, into itself and out of it. Encoders write a
chunk's fields in the order of their numbers, its bytes last: such a frame is read by hand,
and any other as the message that it is.

Knows the wire format. Does not know what is done with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protos.llm.v1 import embedding_service_pb2 as pb
from protos.tensor.v1 import tensor_pb2

_LENGTH_DELIMITED = 2
_MOST_BITS = 63
_MAX_INDEX = 2**31 - 1
_MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RowChunk:
    """A chunk of a tensor; see `TensorChunk`.

    Attributes:
        data: its bytes, where they came.
    """

    tensor_index: int
    byte_offset: int
    data: memoryview


def read_put_frame(frame: bytes) -> pb.PutEmbeddingsRequest | RowChunk:
    """Reads a frame: chunks as `RowChunk`, whatever else there is as the message.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    chunk = _read_chunk(frame)
    if chunk is not None:
        return chunk
    message = pb.PutEmbeddingsRequest.FromString(frame)
    if message.WhichOneof("frame") != "chunk":
        return message
    return RowChunk(message.chunk.tensor_index, message.chunk.byte_offset, memoryview(message.chunk.data))


def _read_chunk(frame: bytes) -> RowChunk | None:
    """The chunk in a frame that encoders write, or None."""
    index = offset = 0
    try:
        if frame[0] != _CHUNK:
            return None
        length, at = _varint(frame, 1)
        if at + length != len(frame):
            return None
        if frame[at] == _INDEX:
            index, at = _varint(frame, at + 1)
        if frame[at] == _OFFSET:
            offset, at = _varint(frame, at + 1)
        if frame[at] != _DATA:
            return None
        length, at = _varint(frame, at + 1)
    except IndexError:
        return None
    if at + length != len(frame) or index > _MAX_INDEX or offset > _MAX_OFFSET:
        return None
    return RowChunk(index, offset, memoryview(frame)[at:])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends; beyond any limit where it is too long."""
    number = shift = 0
    while (byte := data[at]) > 0x7F:
        number |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > _MOST_BITS:
            return _MAX_OFFSET + 1, at
    return number | byte << shift, at + 1


def _tag(message: Descriptor, name: str) -> int:
    """The byte in front of a field."""
    field = message.fields_by_name[name]
    delimited = field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
    tag: int = field.number << 3 | (_LENGTH_DELIMITED if delimited else 0)
    assert tag <= 0x7F, "a tag of one byte"
    return tag


_CHUNK = _tag(pb.PutEmbeddingsRequest.DESCRIPTOR, "chunk")
_INDEX = _tag(tensor_pb2.TensorChunk.DESCRIPTOR, "tensor_index")
_OFFSET = _tag(tensor_pb2.TensorChunk.DESCRIPTOR, "byte_offset")
_DATA = _tag(tensor_pb2.TensorChunk.DESCRIPTOR, "data")
