"""The engine's end of the socket, for reading: messages as they come, and the front's end.

The step loop reads by itself, between steps and while it has nothing to do: handing each message
over from a thread that reads cost a second wake-up before every prompt's first step. What comes
during a step waits in the socket, and then at the front, which bounds it.

Knows frames. Does not know what the messages mean.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

from llm_service.engine.frames import FrameBuffer, decode_to_engine
from llm_service.engine.messages import ToEngine

_READ_BYTES = 256 * 1024
_MOST_BYTES = 8 * 1024 * 1024
"""Bytes that are read between two steps, about: steps must not wait for a busy sender."""


class FrontGoneError(Exception):
    """The front has closed its end."""


class EngineInbox:
    """Reads the front's messages. For one thread, except `wait_for_hangup`."""

    def __init__(self, connection: socket.socket) -> None:
        """
        Args:
            connection: a blocking stream socket; others may write to it.
        """
        self._connection = connection
        self._buffer = FrameBuffer()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def wait(self, seconds: float | None = None) -> bool:
        """Sleeps until something has come, or the front is gone. False: the time was up before."""
        return bool(self._readable.poll(None if seconds is None else 1e3 * seconds))

    def take(self) -> Iterator[ToEngine]:
        """Yields the messages that are complete now, without waiting for more.

        Raises:
            FrontGoneError: no more will come.
            msgspec.MsgspecError: what came is no message.
            OSError: the connection is broken.
        """
        left = _MOST_BYTES
        while left > 0 and (data := self._read()):
            left -= len(data)
            for body in self._buffer.feed(data):
                yield decode_to_engine(body)

    def _read(self) -> bytes:
        """What is there, or nothing."""
        try:
            data = self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        if not data:
            raise FrontGoneError
        return data

    def wait_for_hangup(self) -> None:
        """Returns once the front has closed its end, whether its last messages were read or not."""
        hangup = select.poll()
        # No event is asked for: a hangup is always told, and messages do not wake us.
        hangup.register(self._connection, 0)
        hangup.poll()
