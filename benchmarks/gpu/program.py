"""The parts in their order, each guarded, and the table of bars.

Knows bars and how to say what was met. Measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import free_memory
from benchmarks.gpu.language import measure_decoding, measure_prefill
from benchmarks.gpu.limits import UNKNOWN, Limits, measure_limits
from benchmarks.gpu.sharing import measure_sharing
from benchmarks.gpu.sizes import SMOKE, Scale
from benchmarks.gpu.throughput import measure_throughput
from benchmarks.gpu.tower import measure_tower

TEST_SECONDS = 150
TESTS = (
    "tests/unit/runner/test_triton_attention.py",
    "tests/unit/runner/test_cuda_graphs.py",
    "tests/unit/runner/test_fused_decoder.py",
    "tests/unit/families/test_tower_attention.py",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """What is wanted of a figure.

    Attributes:
        what: the row's title.
        part: name of the part that measures it.
        key: of the figure in the part's findings.
        bound: the figure may be at most this, or at least where `least`.
    """

    what: str
    part: str
    key: str
    bound: float
    least: bool


def bars(scale: Scale) -> list[Bar]:
    """One row of the table for each figure that has a bar."""
    decoding = [
        Bar(f"decode step / floor, {each.name}", f"decoding {each.name}", "ratio", 1.25, False)
        for each in scale.models
    ]
    return [
        *decoding,
        Bar("decode throughput / transformers", "throughput", "ratio", 1.3, True),
        Bar(f"prefill of {scale.prefill}, share of GEMM", "prefill", "share", 0.5, True),
        Bar("vision tower, share of GEMM", "tower", "share", 0.4, True),
        Bar("TTFT two processes / one, alone", "sharing", "ratio_alone", 0.6, False),
        Bar("TTFT two processes / one, 4 at once", "sharing", "ratio_at_once", 0.6, False),
    ]


class Program:
    """Runs parts and keeps what they found."""

    def __init__(self, scale: Scale, out: Path, wanted: list[str], budget_s: float = math.inf) -> None:
        """Args:
        budget_s: no part begins later than this.
        """
        self._scale = scale
        self._out = out
        self._wanted = wanted
        self._budget_s = budget_s
        self._begin = time.perf_counter()
        self.findings: dict[str, Any] = {}

    def run(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """Runs one part; its failure is a finding."""
        if self._wanted and name != "limits" and not any(name.startswith(each) for each in self._wanted):
            return
        begin = time.perf_counter()
        print(f"[{begin - self._begin:5.0f} s] {name} ...", flush=True)
        if begin - self._begin > self._budget_s:
            self.findings[name] = {"error": f"not begun within {self._budget_s:.0f} s"}
            return
        try:
            found = part()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        free_memory(torch.device(self._scale.device))
        self.findings[name] = found | {"seconds": round(time.perf_counter() - begin, 1)}
        print(f"          {json.dumps(self.findings[name])}", flush=True)
        self._out.write_text(json.dumps(self.findings, indent=2) + "\n")

    def report(self) -> bool:
        """Prints the table; says whether every part ran."""
        if self._scale.device != "cuda":
            print("tiny sizes on the CPU: the figures mean nothing")
        print(f"\n{'what':44} {'value':>8} {'bar':>8}  met")
        for bar in bars(self._scale):
            value = self.findings.get(bar.part, {}).get(bar.key)
            sign = ">=" if bar.least else "<="
            if value is None or math.isnan(value):
                print(f"{bar.what:44} {'-':>8} {sign}{bar.bound:6.2f}  not measured")
                continue
            met = value >= bar.bound if bar.least else value <= bar.bound
            print(f"{bar.what:44} {value:8.3f} {sign}{bar.bound:6.2f}  {'yes' if met else 'NO'}")
        failed = [name for name, found in self.findings.items() if "error" in found]
        if failed:
            print(f"failed: {', '.join(failed)}")
        return not failed


def main() -> int:
    """Runs the parts; 0 where each one ran, whatever it found."""
    arguments = _arguments()
    scale = SMOKE if arguments.smoke else Scale()
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --smoke runs with tiny sizes on the CPU")
    scale = replace(scale, repeats=arguments.repeats or scale.repeats)
    program = Program(scale, arguments.out, arguments.only, arguments.budget_s)
    run_parts(program, scale)
    return 0 if program.report() else 1


def run_parts(program: Program, scale: Scale) -> None:
    """All parts in order: the tests first, then the limits that others are compared with."""
    program.run("machine", _machine)
    if scale.device == "cuda":
        program.run("tests", _tests)
    program.run("limits", lambda: asdict(measure_limits(scale)))
    found = program.findings.get("limits", {"error": "not run"})
    limits = UNKNOWN if "error" in found else Limits(found["copy_bytes_per_s"], found["operations_per_s"])
    first = scale.models[0]
    for sizes in scale.models:
        program.run(f"decoding {sizes.name}", lambda sizes=sizes: measure_decoding(sizes, scale, limits))  # type: ignore[misc]
    program.run("prefill", lambda: measure_prefill(first, scale, limits))
    program.run("tower", lambda: measure_tower(first, scale, limits))
    program.run("throughput", lambda: measure_throughput(first, scale))
    program.run("sharing", lambda: measure_sharing(scale))


def _machine() -> dict[str, Any]:
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def _tests() -> dict[str, Any]:
    """The tests that run kernels and recordings, on the GPU instead of in Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", *TESTS]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS
    )
    lines = run.stdout.strip().splitlines()
    if run.returncode:
        print("\n".join(lines[-60:]), run.stderr[-2000:], flush=True)
        raise RuntimeError(f"tests failed: {lines[-1] if lines else run.returncode}")
    return {"outcome": lines[-1]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; measures nothing")
    parser.add_argument(
        "--only", nargs="*", default=[], help="beginnings of the parts' names, such as: prefill tower"
    )
    parser.add_argument("--repeats", type=int, help="of what is timed as a whole")
    parser.add_argument(
        "--budget-s", type=float, default=480.0, help="no part begins later, so that ten minutes are enough"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results.json"), help="file for all findings")
    return parser.parse_args()
