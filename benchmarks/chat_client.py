"""A small HTTP client for measurements: one connection, kept alive, nothing parsed that need not be.

Knows the chat API's requests and when the pieces of an answer came. Judges nothing.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
    """Asks one gateway, one question at a time."""

    def __init__(self, gateway: str) -> None:
        host, _, port = gateway.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=600)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

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
        begin = time.perf_counter()
        self._connection.request(
            "POST",
            "/v1/chat/completions",
            body,
            {"Content-Type": "application/json", "Connection": "keep-alive"},
        )
        response = self._connection.getresponse()
        times, pieces = [], []
        while piece := response.read1(65536):
            times.append(time.perf_counter() - begin)
            pieces.append(piece)
        response.read()  # Only this tells the connection that the body has ended.
        whole = b"".join(pieces)
        if response.status != 200:
            raise SystemExit(f"the gateway answered {response.status}: {whole.decode(errors='replace')}")
        gaps = tuple(after - before for before, after in pairwise(times))
        return Answer(times[0], times[-1], gaps, whole)

    def time_to_first_token(self, content: Any) -> float:
        """Seconds until an answer of one token was there, whatever its text is."""
        return self.ask(content, 1).whole_s

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


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
