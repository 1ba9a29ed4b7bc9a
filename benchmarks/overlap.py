"""`python -m benchmarks.overlap`: what it gains that rows are prefilled while later pictures are encoded.

Asks about two fresh pictures of equal size, by turns with streamed rows and with a
barrier that holds all rows until the last has come (`embedding_gate`, which stands
in between both times). Beside the ratio stands the ideal, computed from measured
parts: of all that a held request takes (H), only the first picture's prefill can go
behind the second one's encoding (E). What it adds is what the steps of a request
with two pictures (P2, held) take longer than those of a request with one (P1):

    (H - min(E, P2 - P1)) / H

The text before the first picture is prefilled while that is encoded, held or not, and
the weights are read for the last picture's chunk, held or not: neither can be gained.
It can be reached only where both services have a core to themselves.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

from benchmarks.chat_client import ChatClient, noise_part, text_part
from benchmarks.embedding_gate import EmbeddingGate
from benchmarks.running import Parts, Services, mean_between
from benchmarks.suite.checkpoint import ensure_checkpoint
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
        """Has rows wait until those of `count` items are there; 1 lets whole items through, 0 all."""
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
            stages = services.stage_seconds(gateway)
            samples = _ask_by_turns(_Asker(client, services, size), gate, repeats)
            encode = mean_between(stages, services.stage_seconds(gateway), "encode")
            client.close()
        status = services.encoder_status()
    figures = overlap_figures(samples, encode)
    figures["tower_runs_per_picture"] = round(status.tower_run_count / status.encoded_item_count, 3)
    return figures | {
        "encoder_threads": encoder_threads,
        "llm_threads": llm_threads,
        "nice": nice,
        "size": size,
    }


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds to a request's first token, and those that the LLM's steps took of them."""

    first_token_s: float
    steps_s: float


@dataclass(frozen=True, slots=True)
class _Asker:
    client: ChatClient
    services: Services
    size: int

    def sample(self, seed: int, count: int) -> Sample:
        """Asks about `count` fresh pictures."""
        before = self.services.llm_status().step_seconds
        seconds = _ask(self.client, self.size, seed=seed, count=count)
        return Sample(seconds, self.services.llm_status().step_seconds - before)


WAYS = {"one": (1, 1), "streamed": (2, 1), "held": (2, 2)}
"""Pictures of a request, and how many of them the gate holds until all are there."""


def _ask_by_turns(asker: _Asker, gate: GateThread, repeats: int) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in WAYS}
    for turn in range(repeats):
        # Each of the two that are compared goes first every other time.
        for place, name in enumerate(list(WAYS)[:: 1 if turn % 2 else -1]):
            picture_count, held_count = WAYS[name]
            gate.hold_for(held_count)
            samples[name].append(asker.sample(1000 + 10 * turn + 3 * place, picture_count))
        print(f"overlap: {turn + 1} of {repeats}", flush=True)
    return samples


def _ask(client: ChatClient, size: int, *, seed: int, count: int) -> float:
    """Seconds to the first token of an answer about `count` fresh pictures."""
    pictures = [noise_part(seed + index, size) for index in range(count)]
    return client.time_to_first_token([*pictures, text_part("?")])


def overlap_figures(samples: dict[str, list[Sample]], encode_s: float) -> dict[str, Any]:
    """The ratio, the ideal, and what they were computed from.

    Args:
        encode_s: seconds of one picture in the tower.
    """
    seconds = {name: [sample.first_token_s for sample in of_way] for name, of_way in samples.items()}
    steps = {name: median(sample.steps_s for sample in of_way) for name, of_way in samples.items()}
    hidden = min(encode_s, steps["held"] - steps["one"])
    return {
        "ratio": paired_ratio(seconds["streamed"], seconds["held"]),
        "ideal_ratio": round(1 - hidden / median(seconds["held"]), 4),
        **{f"{name}_s": spread(values) for name, values in seconds.items()},
        "encode_s": round(encode_s, 4),
        **{f"{name}_steps_s": round(value, 4) for name, value in steps.items()},
    }


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("overlap", __doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; otherwise the suite's is written")
    parser.add_argument("--encoder-threads", type=int, default=1)
    parser.add_argument("--llm-threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0, help="niceness of the encoder service")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, default=448, help="pixels on a picture's side")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="percept-overlap-") as scratch:
        # The bundled model's processor would make a picture of any size small.
        model = chosen.model or ensure_checkpoint(Path(scratch) / "model")
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
