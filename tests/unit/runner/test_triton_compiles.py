"""The Triton kernels compile for a GPU, also where there is none: the compiler needs no device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOST_SHARED_BYTES = 99 * 1024
"""What a program may have on the smallest GPUs in use (compute capability 8.6 and 8.9)."""


def test_kernels_compile_and_use_the_matrix_units(repository: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.runner.compile_kernels"]
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, check=False, cwd=repository, env=environment, capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) == 17
    for facts in kernels:
        assert facts["code_bytes"] > 0
        assert facts["shared"] <= MOST_SHARED_BYTES
        assert facts["matrix_units"] == (
            facts["kernel"] in ("decode_kernel", "chunk_kernel", "varlen_kernel")
        )
