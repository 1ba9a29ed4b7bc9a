"""Batch norms that are not trained: one factor and one summand for each channel.

Knows torch's `BatchNorm1d` and the names of its tensors. Does not know any family.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class FixedNorm(nn.Module):
    """A batch norm of fixed means and variances."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Parameter(torch.zeros(channels))
        self.running_var = nn.Parameter(torch.ones(channels))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(items, channels, length) to the same."""
        return functional.batch_norm(
            states, self.running_mean, self.running_var, self.weight, self.bias, eps=self._epsilon
        )


def fix_batch_norms(module: nn.Module) -> None:
    """Puts a `FixedNorm` in the place of every batch norm below a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, FixedNorm(child.num_features, child.eps))
