"""Encoder and LLM on one GPU: as the real services, each a process, and as one process that takes turns.

The time to the first token of requests with several pictures, alone and several
at once. The one process has every part that the services have (decoding and
preprocessing on threads, the tower, the engine's runner with its graphs), but
no HTTP, no gRPC and no copy between processes: what it lacks is only the
overlap. Its steps of one request are strictly one after the other, and so are
requests. Knows pictures and clocks. Does not know sizes of models.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.chat_client import ChatClient
from benchmarks.gpu.clock import free_memory
from benchmarks.gpu.models import write_checkpoint
from benchmarks.gpu.one_process import OneProcess
from benchmarks.gpu.sizes import Scale
from benchmarks.running import Parts, Services

AT_ONCE = 4
"""Requests at the same time, in the second half of the measurement."""

QUESTION = "what is in these pictures?"


class Pictures:
    """PNG pictures that nobody has seen before: every cache misses."""

    def __init__(self, scale: Scale) -> None:
        height, width = scale.picture
        self._small = np.zeros((height // 28, width // 28, 3), dtype=np.uint8)
        self._size = (width, height)
        self._count = scale.pictures
        self._seed = 0
        self._lock = threading.Lock()

    def next_request(self) -> list[bytes]:
        """The pictures of one request: coarse noise, of which a PNG is quickly written."""
        with self._lock:
            self._seed += 1
            generator = np.random.default_rng(self._seed)
        return [self._picture(generator) for _ in range(self._count)]

    def _picture(self, generator: np.random.Generator) -> bytes:
        noise = generator.integers(0, 256, self._small.shape, dtype=np.uint8)
        picture = Image.fromarray(noise).resize(self._size, Image.Resampling.NEAREST)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


def measure_sharing(scale: Scale) -> dict[str, Any]:
    """Milliseconds to the first token of both, and their ratio, for one request and for several at once."""
    device = torch.device(scale.device)
    pictures = Pictures(scale)
    found: dict[str, Any] = {"model": scale.services.name, "pictures": scale.pictures}
    with tempfile.TemporaryDirectory(prefix="percept-gpu-") as scratch:
        folder = Path(scratch) / "checkpoint"
        write_checkpoint(scale.services, folder, device)
        free_memory(device)
        found["services"] = _measure_services(folder, scale, pictures)
        found["one_process"] = _measure_one_process(folder, scale, pictures)
        free_memory(device)
    for name in ("alone_ms", "at_once_ms"):
        found[f"ratio_{name.removesuffix('_ms')}"] = found["services"][name] / found["one_process"][name]
    return found


def _measure_services(folder: Path, scale: Scale, pictures: Pictures) -> dict[str, float]:
    common: dict[str, Any] = {"device": scale.device, "dtype": "bfloat16"}
    if scale.device == "cpu":
        # Two services share what may be two cores, and neither may starve the other's answers.
        common["threads"] = 1
    llm: dict[str, Any] = {"max-model-len": 16384, "max-num-batched-tokens": 8192, "embedding-store-gib": 2}
    if scale.device == "cuda":
        llm["gpu-memory-utilization"] = 0.5
    with Services(Parts(folder, common, {}, llm)) as services:
        clients: list[ChatClient] = [ChatClient(services.gateway) for _ in range(AT_ONCE)]

        def ask(index: int, request: list[bytes]) -> None:
            content: list[dict[str, Any]] = [_image(data) for data in request]
            clients[index].ask([*content, {"type": "text", "text": QUESTION}], 1)

        return _times(ask, scale, pictures)


def _measure_one_process(folder: Path, scale: Scale, pictures: Pictures) -> dict[str, float]:
    engine = OneProcess(folder, torch.device(scale.device))
    turn = threading.Lock()

    def ask(index: int, request: list[bytes]) -> None:
        with turn:
            engine.first_token(request, QUESTION)

    return _times(ask, scale, pictures)


def _times(ask: Callable[[int, list[bytes]], None], scale: Scale, pictures: Pictures) -> dict[str, float]:
    """Mean milliseconds until a request has its first token, alone and `AT_ONCE` at the same time."""
    for _ in range(2):
        ask(0, pictures.next_request())
    alone = [_timed(ask, 0, pictures.next_request()) for _ in range(scale.repeats)]
    together: list[float] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(scale.repeats):
            requests = [pictures.next_request() for _ in range(AT_ONCE)]
            together += pool.map(lambda pair: _timed(ask, *pair), enumerate(requests))
    return {
        "alone_ms": 1e3 * statistics.median(alone),
        "at_once_ms": 1e3 * statistics.mean(together),
    }


def _timed(ask: Callable[[int, list[bytes]], None], index: int, request: list[bytes]) -> float:
    begin = time.perf_counter()
    ask(index, request)
    return time.perf_counter() - begin


def _image(data: bytes) -> dict[str, Any]:
    import base64

    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}
