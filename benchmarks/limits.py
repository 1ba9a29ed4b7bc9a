"""`python -m benchmarks.limits`: what this machine can do at best, as floors for what is served on it.

Knows torch and clocks, and how a model's sizes become the least time that a step can
take. Does not know who serves.

Every figure is the best of several tries: a limit is what was reached at least once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GEMM_SIZE = 2048
GEMV_ROWS, GEMV_COLUMNS = 9728, 896
"""The largest matrix of a layer in the benchmark's model: gate and up in one."""

GEMV_MATRICES = 24
BUSY_SEQUENCES = 256
"""Of the step that the engine's own cost is compared with."""

BUFFER_BYTES = 512 * 1024 * 1024
"""Far beyond any cache."""

TRY_SECONDS = 2.0
LEAST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What was reached. Bytes and operations are counted as an ideal program needs them.

    Attributes:
        cores: threads that worked.
        memory_read_gb_per_s: a buffer read once, bytes over seconds.
        memcpy_gb_per_s: a buffer copied once, its own bytes over seconds; each is read and written.
        bf16_gemm_tflops: square product in bfloat16, two operations for each multiplication.
        fp32_gemm_tflops: the same in float32.
        bf16_gemv_gb_per_s: matrix times vector, different matrices one after the other, bytes of the
            matrices over seconds. Torch's own, as a plain program would call it.
    """

    cores: int
    memory_read_gb_per_s: float
    memcpy_gb_per_s: float
    bf16_gemm_tflops: float
    fp32_gemm_tflops: float
    bf16_gemv_gb_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Work:
    """What a model must at least do.

    Attributes:
        decode_bytes: weights that a decode step reads, whatever its batch.
        prefill_flops: operations for each prompt token.
        picture_flops: operations of the vision tower for one picture.
    """

    decode_bytes: int
    prefill_flops: float
    picture_flops: float


@dataclass(frozen=True, slots=True)
class Floors:
    """The least milliseconds that the machine allows.

    Attributes:
        decode_ms: a decode step.
        text_prefill_ms: a text prompt.
        picture_encode_ms: a picture in the vision tower.
        picture_prefill_ms: a prompt with a picture in the language model.
        busy_decode_ms: a decode step of `BUSY_SEQUENCES` sequences.
    """

    decode_ms: float
    text_prefill_ms: float
    picture_encode_ms: float
    picture_prefill_ms: float
    busy_decode_ms: float


def floors(limits: Limits, work: Work, text_tokens: int, picture_prompt_tokens: int) -> Floors:
    """Computes the floors of a model on a machine.

    Args:
        text_tokens: of a text prompt.
        picture_prompt_tokens: of a prompt with a picture, the picture's tokens included.
    """
    flops_per_ms = limits.bf16_gemm_tflops * 1e9
    read_ms = work.decode_bytes / (limits.memory_read_gb_per_s * 1e6)
    return Floors(
        decode_ms=read_ms,
        text_prefill_ms=work.prefill_flops * text_tokens / flops_per_ms,
        picture_encode_ms=work.picture_flops / flops_per_ms,
        picture_prefill_ms=work.prefill_flops * picture_prompt_tokens / flops_per_ms,
        busy_decode_ms=max(read_ms, work.prefill_flops * BUSY_SEQUENCES / flops_per_ms),
    )


def gemm_tflops(size: int, seconds: float) -> float:
    """Rate of a square product: two operations for each multiplication."""
    return 2 * size**3 / seconds / 1e12


def gb_per_s(byte_count: int, seconds: float) -> float:
    """Decimal gigabytes per second."""
    return byte_count / seconds / 1e9


def best_seconds(run: Callable[[], Any], try_seconds: float = TRY_SECONDS) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    run()
    best, tries = float("inf"), 0
    begun = time.perf_counter()
    while tries < LEAST_TRIES or time.perf_counter() - begun < try_seconds:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
        tries += 1
    return best


def measure(cores: int, *, try_seconds: float = TRY_SECONDS, buffer_bytes: int = BUFFER_BYTES) -> Limits:
    """Measures the machine with so many threads; takes about five times `try_seconds`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with torch.inference_mode():
            read, copied = _memory(buffer_bytes, try_seconds)
            return Limits(
                cores=cores,
                memory_read_gb_per_s=read,
                memcpy_gb_per_s=copied,
                bf16_gemm_tflops=_gemm(torch.bfloat16, try_seconds),
                fp32_gemm_tflops=_gemm(torch.float32, try_seconds),
                bf16_gemv_gb_per_s=_gemv(try_seconds),
            )
    finally:
        torch.set_num_threads(before)


def _memory(byte_count: int, try_seconds: float) -> tuple[float, float]:
    import torch

    source = torch.ones(byte_count // 4, dtype=torch.float32)
    target = torch.empty_like(source)
    read = best_seconds(source.sum, try_seconds)
    copied = best_seconds(lambda: target.copy_(source), try_seconds)
    return gb_per_s(source.nbytes, read), gb_per_s(source.nbytes, copied)


def _gemm(dtype: Any, try_seconds: float) -> float:
    import torch

    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return gemm_tflops(GEMM_SIZE, best_seconds(lambda: torch.mm(left, right, out=result), try_seconds))


def _gemv(try_seconds: float) -> float:
    import torch

    matrices = torch.randn(GEMV_MATRICES, GEMV_ROWS, GEMV_COLUMNS, dtype=torch.bfloat16)
    vector = torch.randn(1, GEMV_COLUMNS, dtype=torch.bfloat16)

    def run() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(vector, matrix)

    return gb_per_s(matrices.nbytes, best_seconds(run, try_seconds))


def table(limits: Limits) -> str:
    """The limits as Markdown."""
    rows = {
        "memory read": f"{limits.memory_read_gb_per_s:.1f} GB/s",
        "memcpy (bytes copied; each is read and written)": f"{limits.memcpy_gb_per_s:.1f} GB/s",
        f"bf16 GEMM, {GEMM_SIZE}^3": f"{limits.bf16_gemm_tflops:.2f} TFLOP/s",
        f"fp32 GEMM, {GEMM_SIZE}^3": f"{limits.fp32_gemm_tflops:.2f} TFLOP/s",
        f"bf16 matrix times vector, {GEMV_MATRICES} of {GEMV_ROWS}x{GEMV_COLUMNS}, torch": (
            f"{limits.bf16_gemv_gb_per_s:.1f} GB/s"
        ),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"| limit, {limits.cores} cores | best of several |", "| --- | --- |", *lines])


def main() -> int:
    """Measures and prints; always 0."""
    import psutil

    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--cores", type=int, default=len(psutil.Process().cpu_affinity() or [0]))
    parser.add_argument("--seconds", type=float, default=TRY_SECONDS, help="for each figure")
    chosen = parser.parse_args()
    found = measure(chosen.cores, try_seconds=chosen.seconds)
    print(table(found))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found.to_json(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
