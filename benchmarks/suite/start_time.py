"""`python -m benchmarks.suite.start_time`: from `percept up` to the first answer of the bundled model.

Everything is installed, and files are in the system's cache after a first start that
does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import PeerError, free_port
from benchmarks.peers.percept import percept
from benchmarks.peers.process_tree import ProcessTree
from benchmarks.suite.ratios import Spread

MODEL = "percept-tiny"
LIMIT_SECONDS = 180.0
POLL_SECONDS = 0.05


def measure(*, repeats: int = 3) -> dict[str, Any]:
    """Returns seconds to the first whole answer; the first start is reported apart."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="percept-start-") as scratch:
        for turn in range(repeats + 1):
            seconds.append(start_once(Path(scratch) / f"{turn}.log"))
            print(f"start_time: {turn} of {repeats}: {seconds[-1]:.1f} s", flush=True)
    warm = Spread.of(seconds[1:])
    assert warm is not None, "repeats is at least 1"
    figures = {"p50": warm.median, "p25": warm.low, "p75": warm.high, "count": warm.count}
    return {"first_answer_s": figures, "first_start_s": seconds[0]}


def start_once(log: Path) -> float:
    """Starts `percept up`, asks until there is an answer, ends it. Returns the seconds until then.

    Raises:
        PeerError: there was no answer in time.
    """
    port = free_port()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    started = time.perf_counter()
    with ProcessTree([*percept("up"), f"--model={MODEL}", f"--port={port}"], log) as tree:
        while (elapsed := time.perf_counter() - started) < LIMIT_SECONDS and tree.exit_code is None:
            try:
                with opener.open(request, timeout=LIMIT_SECONDS - elapsed) as answer:
                    json.load(answer)
                    return time.perf_counter() - started
            except (urllib.error.URLError, OSError):
                time.sleep(POLL_SECONDS)
        raise PeerError(f"no answer of percept up after {elapsed:.0f} s:\n{tree.tail()}")


def main() -> int:
    """Measures and prints; always 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.start_time", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    text = json.dumps(measure(repeats=chosen.repeats), indent=2)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
