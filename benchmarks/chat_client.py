"""A small HTTP client for measurements: one connection, kept alive, nothing parsed that need not be.

Knows the chat API's requests and when the pieces of an answer came. Judges nothing.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httptools
import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer came.

    Attributes:
        first_s: seconds to the first piece of the body.
        whole_s: seconds to its end.
        gaps_s: seconds between the pieces of a streamed answer.
        body: what was said.
    """

    first_s: float
    whole_s: float
    gaps_s: tuple[float, ...]
    body: bytes

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts of an answer that was not streamed."""
        usage: dict[str, Any] = json.loads(self.body)["usage"]
        return usage


class ChatClient:
    """Asks one gateway, one question at a time. What it does itself is measured, too, so it is little."""

    def __init__(self, gateway: str) -> None:
        host, _, port = gateway.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {gateway}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )

    def ask(self, content: Any, token_count: int, *, stream: bool = False) -> Answer:
        """Asks for exactly `token_count` greedy tokens.

        Raises:
            SystemExit: the gateway refused.
        """
        body = json.dumps(
            {
                "model": "measured",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": token_count,
                "ignore_eos": True,
                "temperature": 0,
                "stream": stream,
            }
        )
        request = f"{self._head}{len(body)}\r\n\r\n{body}".encode()
        begin = time.perf_counter()
        self._socket.sendall(request)
        reading = _Reading()
        parser = httptools.HttpResponseParser(reading)
        while not reading.complete:
            parser.feed_data(self._receive())
        whole = b"".join(reading.pieces)
        if parser.get_status_code() != 200:
            raise SystemExit(
                f"the gateway answered {parser.get_status_code()}: {whole.decode(errors='replace')}"
            )
        times = [at - begin for at in reading.times]
        gaps = tuple(after - before for before, after in pairwise(times))
        return Answer(times[0], times[-1], gaps, whole)

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("the gateway closed the connection in the middle of an answer")
        return data

    def time_to_first_token(self, content: Any) -> float:
        """Seconds until an answer of one token was there, whatever its text is."""
        return self.ask(content, 1).whole_s

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()


class _Reading:
    """What the parser has found of an answer so far.

    Attributes:
        pieces: of its body.
        times: when each was there, by `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.complete = False

    def on_body(self, body: bytes) -> None:
        """Part of the parser's interface."""
        self.times.append(time.perf_counter())
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        """Part of the parser's interface."""
        self.complete = True


def noise_part(seed: int, size: int) -> dict[str, Any]:
    """A content part with a square picture of noise, another for each seed.

    Args:
        size: pixels on a side.
    """
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_noise(seed, size)}"}}


def noise_video_part(seed: int, size: int, frame_count: int) -> dict[str, Any]:
    """A content part with a video of so many such pictures, one a second."""
    frames = ",".join(_noise(seed * 1000 + index, size) for index in range(frame_count))
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}


def _noise(seed: int, size: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((size, size), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def text_part(text: str) -> dict[str, Any]:
    """A content part with text."""
    return {"type": "text", "text": text}


def words(seed: int, count: int) -> str:
    """Text of `count` short words, another for each seed."""
    draw = np.random.default_rng(seed)
    return " ".join(_WORDS[index] for index in draw.integers(0, len(_WORDS), count))


_WORDS: Sequence[str] = (
    "red",
    "blue",
    "one",
    "two",
    "is",
    "the",
    "left",
    "of",
    "circle",
    "and",
    "square",
    "a",
)
