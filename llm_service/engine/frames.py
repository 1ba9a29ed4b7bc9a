"""How messages travel between front and engine: four bytes of length (little endian), then MessagePack.

Never pickle. Knows bytes; does not know what the messages mean.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec

from llm_service.engine.messages import ToEngine, ToFront

FRAME_HEADER = struct.Struct("<I")
"""Length of a frame's body in bytes."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Longest body. A million tokens of a prompt take 16 MiB."""

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_to_front = msgspec.msgpack.Decoder(ToFront)


def encode_frame(message: ToEngine | ToFront) -> bytes:
    """Returns the message with its length in front."""
    body = _encoder.encode(message)
    assert len(body) <= MAX_FRAME_BYTES, f"a frame of {len(body)} bytes"
    return FRAME_HEADER.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    """Reads a frame's body on the engine's side."""
    message: ToEngine = _to_engine.decode(body)
    return message


def decode_to_front(body: bytes) -> ToFront:
    """Reads a frame's body on the front's side."""
    message: ToFront = _to_front.decode(body)
    return message


def read_frame(stream: BinaryIO) -> bytes | None:
    """Reads one body from a blocking stream, or None at its end, even in mid-frame."""
    header = stream.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    (length,) = FRAME_HEADER.unpack(header)
    assert length <= MAX_FRAME_BYTES, f"a frame of {length} bytes"
    body = stream.read(length)
    return body if len(body) == length else None
