"""The GPU measurement runs from end to end, with tiny sizes on the CPU. Its figures mean nothing there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(400)
def test_every_part_runs(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--repeats", "1", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, check=False, cwd=repository, env=environment, capture_output=True, text=True, timeout=380
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    findings = json.loads(out.read_text())
    parts = {"machine", "limits", "decoding tiny", "prefill", "tower", "throughput", "sharing"}
    assert findings.keys() == parts
    assert "peer_error" not in findings["throughput"]
    # The same float weights, up to bf16's rounding, so the first tokens agree.
    assert findings["throughput"]["equal_first_tokens"] == 1.0
    assert "not measured" not in run.stdout


def test_without_a_gpu_it_says_so(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "none.json")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, check=False, cwd=repository, env=environment, capture_output=True, text=True, timeout=110
    )
    assert run.returncode != 0
    assert "no CUDA device" in run.stderr
