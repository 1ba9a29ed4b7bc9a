"""`python -m benchmarks.cores`: how encoder and LLM get along on the same cores.

For each way to share the cores out: text requests one after another while two
clients keep asking about fresh pictures. Says how long a text request waits for its
first token, how long its later ones take, and how many pictures were answered.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chat_client import Answer, ChatClient, noise_part, text_part, words
from benchmarks.running import Parts, Services
from benchmarks.summary import percentile, report_arguments, spread, write_report


class Shares(NamedTuple):
    """Threads of both services, and how far the encoder yields."""

    encoder: int
    llm: int
    nice: int


WAYS = (Shares(1, 1, 0), Shares(2, 2, 0), Shares(2, 2, 10), Shares(2, 2, 19))


def measure(
    model: Path, *, ways: Sequence[Shares] = WAYS, seconds: float = 20.0, size: int = 448
) -> dict[str, Any]:
    """Returns latencies of text and throughput of pictures for each way.

    Args:
        model: a Qwen2-VL checkpoint.
        seconds: how long to ask, for each way.
        size: pixels on a picture's side.
    """
    return {
        f"encoder {way.encoder}, llm {way.llm}, nice {way.nice}": _measure(model, way, seconds, size)
        for way in ways
    }


def _measure(model: Path, way: Shares, seconds: float, size: int) -> dict[str, Any]:
    print(f"cores: {way}", flush=True)
    parts = Parts(
        model,
        {"dtype": "bfloat16"},
        {"threads": way.encoder, "nice": way.nice, "cache-gib": 0},
        {"threads": way.llm, "kv-cache-gib": 0.25, "max-model-len": 2048},
    )
    ended = threading.Event()
    with Services(parts) as services, ThreadPoolExecutor(2) as threads:
        ChatClient(services.gateway).ask([noise_part(0, size), text_part("?")], 2)
        begin = time.perf_counter()
        pictures = [
            threads.submit(_ask_about_pictures, services.gateway, first, size, ended) for first in (1, 2)
        ]
        answers = _ask_about_text(services.gateway, begin + seconds)
        ended.set()
        picture_count = sum(each.result() for each in pictures)
        elapsed = time.perf_counter() - begin
    return _figures(answers, picture_count / elapsed)


def _ask_about_pictures(gateway: str, first: int, size: int, ended: threading.Event) -> int:
    client = ChatClient(gateway)
    for count in itertools.count():
        if ended.is_set():
            client.close()
            return count
        client.ask([noise_part(2 * count + first, size), text_part("?")], 1)
    raise AssertionError("counting has no end")


def _ask_about_text(gateway: str, until: float) -> list[Answer]:
    client = ChatClient(gateway)
    answers: list[Answer] = []
    while time.perf_counter() < until:
        answers.append(client.ask(f"{len(answers)} {words(len(answers), 64)}", 16, stream=True))
    client.close()
    return answers


def _figures(answers: Sequence[Answer], pictures_per_s: float) -> dict[str, Any]:
    first = [answer.first_s for answer in answers]
    return {
        "text_ttft_s": spread(first),
        "text_ttft_p90_s": round(percentile(first, 90), 4),
        "text_tpot_s": spread([(answer.whole_s - answer.first_s) / 15 for answer in answers]),
        "pictures_per_s": round(pictures_per_s, 3),
    }


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("cores", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Qwen2-VL checkpoint")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each way")
    chosen = parser.parse_args()
    write_report(measure(chosen.model, seconds=chosen.seconds), chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
