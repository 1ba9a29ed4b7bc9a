"""`python -m benchmarks.video_overlap`: what it gains that a video's rows are prefilled while it is encoded.

Asks about fresh videos, by turns with rows that stream as each group of frames is
encoded, and with rows that wait until the last is (`embedding_gate`, which stands in
between both times). Both services have as many threads as they are given; on one
core there is nothing to gain.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.chat_client import ChatClient, noise_video_part, text_part
from benchmarks.overlap import GateThread
from benchmarks.running import Parts, Services, mean_between
from benchmarks.suite.checkpoint import ensure_checkpoint
from benchmarks.summary import paired_ratio, report_arguments, spread, write_report

WAYS = {"streamed": 0, "held": 1}
"""What the gate holds rows for."""


def measure(model: Path, *, threads: int, repeats: int, size: int, frame_count: int) -> dict[str, Any]:
    """Returns seconds to the first token, streamed and held, and their ratio.

    Args:
        model: a Qwen2-VL checkpoint.
        threads: of each of both services.
        repeats: pairs of requests.
        size: pixels on a frame's side.
        frame_count: frames of a video.
    """
    parts = Parts(
        model,
        {"dtype": "bfloat16"},
        {"threads": threads, "cache-gib": 0},
        {"threads": threads, "kv-cache-gib": 0.25, "max-model-len": 4096},
    )
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with Services(parts) as services:
        gate = GateThread(services.llm)
        with gate.running() as address:
            gateway = services.second_gateway(address)
            client = ChatClient(gateway)
            _ask(client, size, frame_count, seed=1)
            stages, before = services.stage_seconds(gateway), services.llm_status().step_seconds
            for turn in range(repeats):
                # Each goes first every other time.
                for place, name in enumerate(list(WAYS)[:: 1 if turn % 2 else -1]):
                    gate.hold_for(WAYS[name])
                    seconds[name].append(_ask(client, size, frame_count, seed=10 + 2 * turn + place))
                print(f"video overlap: {turn + 1} of {repeats}", flush=True)
            encode_s = mean_between(stages, services.stage_seconds(gateway), "encode")
            steps_s = (services.llm_status().step_seconds - before) / (2 * repeats)
            client.close()
        status = services.encoder_status()
    return {
        "ratio": paired_ratio(seconds["streamed"], seconds["held"]),
        **{f"{name}_s": spread(values) for name, values in seconds.items()},
        "encode_s": round(encode_s, 4),
        "steps_s": round(steps_s, 4),
        "tower_runs_per_video": round(status.tower_run_count / status.encoded_item_count, 2),
        "threads": threads,
        "size": size,
        "frames": frame_count,
    }


def _ask(client: ChatClient, size: int, frame_count: int, *, seed: int) -> float:
    """Seconds to the first token of an answer about a fresh video."""
    return client.time_to_first_token([noise_video_part(seed, size, frame_count), text_part("?")])


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("video_overlap", __doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; otherwise the suite's is written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="pixels on a frame's side")
    parser.add_argument("--frames", type=int, default=16)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="percept-video-overlap-") as scratch:
        model = chosen.model or ensure_checkpoint(Path(scratch) / "model")
        figures = measure(
            model,
            threads=chosen.threads,
            repeats=chosen.repeats,
            size=chosen.size,
            frame_count=chosen.frames,
        )
    write_report(figures, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
