"""`python -m benchmarks.whisper`: recordings written down, against transformers' own batch.

A checkpoint of whisper-small's sizes with random weights, bfloat16, on all cores. By turns, each
first every other time: `percept up` gets so many recordings at once through its gateway, each as
a request of its own with a fixed number of tokens; and transformers' `generate` gets as many as
one batch (SDPA), features extracted by it, nothing decoded from a file. Whoever waits has nothing
to do meanwhile. The figure is the ratio of throughputs within a turn; beside it stands the ratio of
the processor's seconds, of all processes of each, which neighbours on the machine disturb less.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.running import free_addresses, process, wait_until_ready
from benchmarks.sounds import noise_wav
from benchmarks.summary import paired_ratio, report_arguments, spread, write_report
from benchmarks.whisper_checkpoint import write_whisper

PROMPT = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
GOAL = 1.5


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked in a turn.

    Attributes:
        clips: recordings at once.
        seconds: how long each is.
        tokens: of each answer.
    """

    clips: int
    seconds: float
    tokens: int


def measure(model: Path, load: Load, *, repeats: int, threads: int, flags: Sequence[str]) -> dict[str, Any]:
    """Returns seconds of both and the ratio of their throughputs.

    Args:
        model: a Whisper checkpoint.
        repeats: turns that count; one before them does not.
        threads: of transformers.
        flags: further ones of `percept up`.
    """
    seconds: dict[str, list[float]] = {"percept": [], "transformers": []}
    busy: dict[str, list[float]] = {"percept": [], "transformers": []}
    features: list[float] = []
    with _up(model, flags) as (pid, gateway), _Generate(model, threads) as peer:
        pids = {"percept": pid, "transformers": peer.pid}
        for turn in range(-1, repeats):
            seeds = [1000 * (turn + 2) + index for index in range(load.clips)]
            for name in list(seconds)[:: 1 if turn % 2 else -1]:
                before = _processor_seconds(pids[name])
                if name == "percept":
                    taken = _ask_all(gateway, seeds, load)
                else:
                    reply = peer.answer(seeds, load)
                    taken = reply["whole_s"]
                    if turn >= 0:
                        features.append(reply["features_s"])
                if turn >= 0:
                    seconds[name].append(taken)
                    busy[name].append(_processor_seconds(pids[name]) - before)
            print(f"whisper: {turn + 1} of {repeats} {[each[-1:] for each in seconds.values()]}", flush=True)
        stages = _stages(gateway)
    return {
        "throughput_ratio": paired_ratio(seconds["transformers"], seconds["percept"]),
        "goal": GOAL,
        "processor_ratio": paired_ratio(busy["transformers"], busy["percept"]),
        "processor_s": {name: spread(values) for name, values in busy.items()},
        **{f"{name}_s": spread(values) for name, values in seconds.items()},
        "audio_seconds_per_s": {
            name: spread([load.clips * load.seconds / value for value in values], 1)
            for name, values in seconds.items()
        },
        "transformers_features_s": spread(features),
        "stages_mean_s": stages,
        "clips": load.clips,
        "clip_seconds": load.seconds,
        "tokens": load.tokens,
        "threads": threads,
    }


@contextmanager
def _up(model: Path, flags: Sequence[str]) -> Iterator[tuple[int, str]]:
    """`percept up`; yields its process id and the gateway's HOST:PORT."""
    (address,) = free_addresses(1)
    port = address.rpartition(":")[2]
    command = [
        *("-m", "percept", "up", f"--port={port}", f"--model={model}", "--served-model-name=measured"),
        *("--dtype=bfloat16", "--device=cpu", "--cache-gib=0", "--kv-cache-gib=1.5", *flags),
    ]
    with process(command) as pid:
        wait_until_ready(address)
        yield pid, address


def _processor_seconds(pid: int) -> float:
    """What a process and all below it have taken so far."""
    whole = psutil.Process(pid)
    times = [each.cpu_times() for each in (whole, *whole.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _ask_all(gateway: str, seeds: Sequence[int], load: Load) -> float:
    """Seconds until all recordings are written down, each asked about in a connection of its own."""
    bodies = [_body(seed, load) for seed in seeds]
    with ThreadPoolExecutor(len(bodies)) as threads:
        begin = time.perf_counter()
        counts = list(threads.map(lambda body: _ask(gateway, body), bodies))
        taken = time.perf_counter() - begin
    if set(counts) != {load.tokens}:
        raise SystemExit(f"answers of {sorted(set(counts))} tokens, not of {load.tokens}")
    return taken


def _body(seed: int, load: Load) -> bytes:
    heard = {"data": noise_wav(seed, load.seconds), "format": "wav"}
    return json.dumps(
        {
            "model": "measured",
            "prompt": PROMPT,
            "multi_modal_data": {"audio": heard},
            "max_tokens": load.tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()


def _ask(gateway: str, body: bytes) -> int:
    """Asks, and returns how many tokens came."""
    host, _, port = gateway.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=600)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise SystemExit(f"the gateway answered {response.status}: {answer}")
    return int(answer["usage"]["completion_tokens"])


def _stages(gateway: str) -> dict[str, float]:
    """Mean seconds of each stage, as the gateway has measured them."""
    import re
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{gateway}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^percept:stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', text, re.MULTILINE)
    sums = {stage: float(value) for kind, stage, value in found if kind == "sum"}
    counts = {stage: float(value) for kind, stage, value in found if kind == "count"}
    return {stage: round(value / counts[stage], 4) for stage, value in sums.items() if counts[stage]}


class _Generate:
    """The program with transformers, running."""

    def __init__(self, model: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.whisper_generate", str(model), str(threads)]
        environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> _Generate:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def answer(self, seeds: Sequence[int], load: Load) -> dict[str, float]:
        """What it says of a batch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"seeds": list(seeds), "seconds": load.seconds, "tokens": load.tokens}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the program with transformers ended")
        reply: dict[str, float] = json.loads(line)
        return reply


def main() -> int:
    """Measures and prints; 1 where the goal is missed."""
    parser = report_arguments("whisper", __doc__)
    parser.add_argument("--model", type=Path, help="a Whisper checkpoint; otherwise one is written")
    parser.add_argument("--tiny", action="store_true", help="write one of few and narrow layers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each recording")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of transformers")
    parser.add_argument("--flags", default="", help="further ones of percept up, with spaces between")
    chosen = parser.parse_args()
    load = Load(chosen.clips, chosen.seconds, chosen.tokens)
    with tempfile.TemporaryDirectory(prefix="percept-whisper-") as scratch:
        model = chosen.model or write_whisper(Path(scratch) / "model", tiny=chosen.tiny)
        figures = measure(
            model, load, repeats=chosen.repeats, threads=chosen.threads, flags=chosen.flags.split()
        )
    write_report(figures, chosen.json)
    return 0 if figures["throughput_ratio"]["p50"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
