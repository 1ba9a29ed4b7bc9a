"""The engine's reading end: what is there, when it waits, and how it sees the front's end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from llm_service.engine.frames import encode_frame
from llm_service.engine.messages import CancelSequence, Ping
from llm_service.engine_inbox import EngineInbox, FrontGoneError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_takes_all_that_is_there_and_does_not_wait_for_more(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    front, engine = ends
    inbox = EngineInbox(engine)
    assert list(inbox.take()) == []
    half = encode_frame(CancelSequence(3))
    front.sendall(encode_frame(CancelSequence(1)) + encode_frame(Ping()) + half[:5])
    assert list(inbox.take()) == [CancelSequence(1), Ping()]
    front.sendall(half[5:])
    assert list(inbox.take()) == [CancelSequence(3)]


def test_a_wait_ends_with_a_message_or_with_its_time(ends: tuple[socket.socket, socket.socket]) -> None:
    front, engine = ends
    inbox = EngineInbox(engine)
    begin = time.monotonic()
    assert not inbox.wait(0.05)
    assert time.monotonic() - begin >= 0.049
    threading.Timer(0.05, front.sendall, [encode_frame(Ping())]).start()
    assert inbox.wait(30)
    assert time.monotonic() - begin < 20
    assert list(inbox.take()) == [Ping()]


def test_reading_leaves_writing_as_it_was(ends: tuple[socket.socket, socket.socket]) -> None:
    """The other direction must still wait for a slow reader, and not fail with what does not fit."""
    front, engine = ends
    assert list(EngineInbox(engine).take()) == []
    assert engine.getblocking()
    piece = bytes(4 << 20)
    writing = threading.Thread(target=engine.sendall, args=[piece])
    writing.start()
    received = 0
    while received < len(piece):
        received += len(front.recv(1 << 20))
    writing.join(timeout=10)
    assert not writing.is_alive()


def test_the_fronts_end_is_seen_by_the_reader_and_by_the_watch(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    front, engine = ends
    inbox = EngineInbox(engine)
    watch = threading.Thread(target=inbox.wait_for_hangup)
    watch.start()
    front.sendall(encode_frame(Ping()))
    assert inbox.wait(10)
    watch.join(timeout=0.1)
    assert watch.is_alive(), "a message is no hangup"
    front.close()
    watch.join(timeout=10)
    assert not watch.is_alive()
    with pytest.raises(FrontGoneError):
        list(inbox.take())
