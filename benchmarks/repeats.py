"""`python -m benchmarks.repeats`: what a known picture costs, and how often equal ones are encoded.

Asks a fresh question about a picture that is known, and by turns a fresh question
after as many tokens of text that are known: both find their beginning in the prefix
cache. Then many clients ask about one new picture at once, and the encoder says how
often its tower ran for them.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.chat_client import ChatClient, noise_part, text_part, words
from benchmarks.random_checkpoint import write_random_checkpoint
from benchmarks.running import Parts, Services
from benchmarks.summary import paired_ratio, report_arguments, spread, write_report

_LONGEST_TEXT = 4096


def measure(
    model: Path, *, threads: int = 1, repeats: int = 30, size: int = 448, identical_count: int = 32
) -> dict[str, Any]:
    """Returns the ratio of both times, both, and the tower's runs for equal pictures.

    Args:
        model: a Qwen2-VL checkpoint.
        threads: of each service.
        size: pixels on a picture's side.
        identical_count: requests with one picture at once.
    """
    common = {"dtype": "bfloat16", "threads": threads}
    parts = Parts(model, common, {}, {"kv-cache-gib": 0.25, "max-model-len": 2048})
    with Services(parts) as services:
        figures = _repeat(services.gateway, noise_part(1, size), repeats)
        print(f"repeats: {identical_count} equal pictures at once", flush=True)
        return figures | _ask_at_once(services, noise_part(2, size), identical_count)


def _repeat(gateway: str, picture: dict[str, Any], repeats: int) -> dict[str, Any]:
    client = ChatClient(gateway)
    picture_tokens = client.ask([picture, text_part("0000")], 1).usage["prompt_tokens"]
    text = _text_of(client, picture_tokens)
    times: dict[str, list[float]] = {"picture": [], "text": []}
    cached: dict[str, int] = {}
    for turn in range(-2, repeats):
        for name, known in (("picture", picture), ("text", text_part(text))):
            answer = client.ask([known, text_part(f"{turn + 1000}")], 1)
            cached[name] = answer.usage["prompt_tokens_details"]["cached_tokens"]
            if turn >= 0:
                times[name].append(answer.whole_s)
    client.close()
    return {
        "ratio": paired_ratio(times["picture"], times["text"]),
        "picture_s": spread(times["picture"]),
        "text_s": spread(times["text"]),
        "prompt_tokens": picture_tokens,
        "cached_tokens": cached,
    }


def _text_of(client: ChatClient, token_count: int) -> str:
    """Text that makes a prompt of as many tokens, or of very few more.

    Raises:
        SystemExit: there is none.
    """
    fewest, most = 1, _LONGEST_TEXT
    while fewest < most:
        count = (fewest + most) // 2
        if _tokens(client, words(1, count), token_count) < token_count:
            fewest = count + 1
        else:
            most = count
    return words(1, fewest)


def _tokens(client: ChatClient, text: str, enough: int) -> int:
    if len(text) > 12 * enough:
        return enough + 1
    count: int = client.ask([text_part(text), text_part("0000")], 1).usage["prompt_tokens"]
    return count


def _ask_at_once(services: Services, picture: dict[str, Any], count: int) -> dict[str, Any]:
    before = services.encoder_status()
    clients = [ChatClient(services.gateway) for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda client: client.ask([picture, text_part("?")], 1), clients))
    after = services.encoder_status()
    for client in clients:
        client.close()
    return {
        "identical_requests": count,
        "tower_runs": after.tower_run_count - before.tower_run_count,
        "encoded_items": after.encoded_item_count - before.encoded_item_count,
    }


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("repeats", __doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; otherwise one of random weights is written")
    parser.add_argument("--threads", type=int, default=1, help="of each service")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--size", type=int, default=448, help="pixels on a picture's side")
    parser.add_argument("--identical", type=int, default=32, help="requests with one picture at once")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="percept-repeats-") as scratch:
        model = chosen.model or Path(scratch)
        if chosen.model is None:
            write_random_checkpoint(model)
        figures = measure(
            model,
            threads=chosen.threads,
            repeats=chosen.repeats,
            size=chosen.size,
            identical_count=chosen.identical,
        )
    write_report(figures, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
