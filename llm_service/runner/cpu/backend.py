"""The attention backend of models that attend by themselves: it has nothing to prepare.

Knows that nobody asks it. Does not compute.
"""

from __future__ import annotations

import torch

from llm_service.runner.attention.context import StepShape
from llm_service.runner.kv_cache import KvCache


class CpuBackend:
    """Stands where the runner expects a backend; `CpuDecoder` reads the step's shape instead."""

    name = "percept kernels"

    def plan(self, cache: KvCache, shape: StepShape) -> CpuStep:
        """Nothing to plan."""
        return CpuStep()


class CpuStep:
    """The plan of one step: none."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Never called."""
        raise AssertionError("a model of our own kernels asked for another attention")
