"""What the device can do at best: bytes moved and bf16 operations, each per second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import seconds
from benchmarks.gpu.sizes import Scale


@dataclass(frozen=True)
class Limits:
    """Best of several tries.

    Attributes:
        copy_bytes_per_s: of a large copy on the device, bytes read and bytes written.
        operations_per_s: of a large square product in bf16 on random data.
    """

    copy_bytes_per_s: float
    operations_per_s: float


def measure_limits(scale: Scale) -> Limits:
    """Measures both, with inputs far beyond the caches."""
    device = torch.device(scale.device)
    source = torch.empty(scale.copy_bytes // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    copied = min(seconds(lambda: target.copy_(source), device, 10))
    side = scale.product
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    multiplied = min(seconds(lambda: left @ right, device, 20, warm_up=5))
    return Limits(2 * scale.copy_bytes / copied, 2 * side**3 / multiplied)


UNKNOWN = Limits(float("nan"), float("nan"))
"""Stands in where the limits could not be measured: times are still worth having."""
