"""`python -m benchmarks.overlap`: what it gains that rows are prefilled while later pictures are encoded.

Asks about two fresh pictures of equal size, by turns with streamed rows and with a
barrier that holds all rows until the last has come (`embedding_gate`, which stands
in between both times). Beside the ratio stands the ideal, computed from the
measured parts: E for one picture's encoding and P for its prefill, the first
picture's prefill hidden behind the second one's encoding:

    (2E + 2P - min(E, P)) / (2E + 2P)

It can be reached only where both services have a core to themselves.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.chat_client import ChatClient, noise_part, text_part
from benchmarks.embedding_gate import EmbeddingGate
from benchmarks.random_checkpoint import write_random_checkpoint
from benchmarks.running import BUNDLED, Parts, Services, mean_between
from benchmarks.summary import paired_ratio, report_arguments, spread, write_report


class GateThread:
    """A gate on an event loop of its own, beside a client that waits."""

    def __init__(self, llm: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._gate = EmbeddingGate(llm)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves inside the block; gives the address."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._gate.start(), self._loop).result(30)
        try:
            yield self._gate.address
        finally:
            asyncio.run_coroutine_threadsafe(self._gate.close(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)

    def hold_for(self, count: int) -> None:
        """Has rows wait until those of `count` items are there; 1 lets them through."""
        self._gate.barrier.count = count


def measure(
    model: Path,
    *,
    encoder_threads: int = 1,
    llm_threads: int = 1,
    nice: int = 0,
    repeats: int = 9,
    size: int = 448,
) -> dict[str, Any]:
    """Returns the ratio of streamed to held rows, the ideal, and the parts.

    Args:
        model: a Qwen2-VL checkpoint.
        nice: of the encoder service; anything but 0 yields to whatever else the machine runs, too.
        repeats: pairs of requests.
        size: pixels on a picture's side.
    """
    parts = Parts(
        model,
        {"dtype": "bfloat16"},
        {"threads": encoder_threads, "nice": nice, "cache-gib": 0},
        {"threads": llm_threads, "kv-cache-gib": 0.25, "max-model-len": 2048},
    )
    with Services(parts) as services:
        gate = GateThread(services.llm)
        with gate.running() as address:
            gateway = services.second_gateway(address)
            client = ChatClient(gateway)
            _ask(client, size, seed=1, count=1)
            stages, steps = services.stage_seconds(gateway), services.llm_status()
            one = [_ask(client, size, seed=2 + turn, count=1) for turn in range(repeats)]
            encode = mean_between(stages, services.stage_seconds(gateway), "encode")
            prefill = (services.llm_status().step_seconds - steps.step_seconds) / repeats
            times = _ask_by_turns(client, gate, repeats, size)
            client.close()
        status = services.encoder_status()
    figures = _figures({"one": one, **times})
    figures |= {"encode_s": round(encode, 4), "prefill_s": round(prefill, 4)}
    figures["ideal_ratio"] = round(1 - min(encode, prefill) / (2 * encode + 2 * prefill), 4)
    figures["tower_runs_per_picture"] = round(status.tower_run_count / status.encoded_item_count, 3)
    return figures | {
        "encoder_threads": encoder_threads,
        "llm_threads": llm_threads,
        "nice": nice,
        "size": size,
    }


def _ask_by_turns(client: ChatClient, gate: GateThread, repeats: int, size: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"streamed": [], "held": []}
    for turn in range(repeats):
        # Each goes first every other time.
        for place, (name, held_count) in enumerate((("streamed", 1), ("held", 2))[:: 1 if turn % 2 else -1]):
            gate.hold_for(held_count)
            times[name].append(_ask(client, size, seed=1000 + 10 * turn + 5 * place, count=2))
        print(f"overlap: {turn + 1} of {repeats}", flush=True)
    return times


def _ask(client: ChatClient, size: int, *, seed: int, count: int) -> float:
    """Seconds to the first token of an answer about `count` fresh pictures."""
    pictures = [noise_part(seed + index, size) for index in range(count)]
    return client.time_to_first_token([*pictures, text_part("?")])


def _figures(times: dict[str, list[float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"ratio": paired_ratio(times["streamed"], times["held"])}
    return figures | {f"{name}_s": spread(values) for name, values in times.items()}


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("overlap", __doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; otherwise one of random weights is written")
    parser.add_argument("--encoder-threads", type=int, default=1)
    parser.add_argument("--llm-threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0, help="niceness of the encoder service")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, default=448, help="pixels on a picture's side")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="percept-overlap-") as scratch:
        model = chosen.model or Path(scratch)
        if chosen.model is None:
            write_random_checkpoint(model, BUNDLED)
        figures = measure(
            model,
            encoder_threads=chosen.encoder_threads,
            llm_threads=chosen.llm_threads,
            nice=chosen.nice,
            repeats=chosen.repeats,
            size=chosen.size,
        )
    write_report(figures, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
