"""How messages travel between front and engine: four bytes of length (little endian), then MessagePack.

Never pickle. Knows bytes; does not know what the messages mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

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


class FrameBuffer:
    """Cuts a stream of bytes into the bodies of its frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and yields each body that is whole by now."""
        self._bytes += data
        start = 0
        try:
            while (end := self._end(start)) is not None:
                begin, start = start + FRAME_HEADER.size, end
                yield bytes(self._bytes[begin:end])
        finally:
            del self._bytes[:start]

    def _end(self, start: int) -> int | None:
        """Where the frame at `start` ends; None while it is not whole."""
        if len(self._bytes) - start < FRAME_HEADER.size:
            return None
        (length,) = FRAME_HEADER.unpack_from(self._bytes, start)
        assert length <= MAX_FRAME_BYTES, f"a frame of {length} bytes"
        end: int = start + FRAME_HEADER.size + length
        return end if end <= len(self._bytes) else None
