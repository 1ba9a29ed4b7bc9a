"""Ultravox's projector: rows of the encoder stacked, normalised, and mapped into the language model's space.

The architecture and its tensors' names are the authors' (fixie-ai/ultravox, `UltravoxProjector` in
ultravox/model/ultravox_model.py): up to version 0.4.1 the second norm stands behind the second
linear layer, from 0.5 on before it. Knows rows of one clip; does not know the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

GATED = "swiglu"
EPSILON = 1e-6


class RootNorm(nn.Module):
    """Division by the root of the mean square, in float32, then a factor for each column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, width) to the same shape and type."""
        exact = rows.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)
        return self.weight * normed.to(rows.dtype)


class Projector(nn.Module):
    """Stacks rows and projects them."""

    def __init__(self, config: Any) -> None:
        """Args:
        config: see `UltravoxSource.config`.
        """
        super().__init__()
        self._stack = int(config.stack_factor)
        self._act = config.projector_act
        stacked = int(config.audio_config.d_model) * self._stack
        middle = config.hidden_size // 2 if self._act == GATED else config.hidden_size
        width = int(config.text_config.hidden_size)
        self.ln_pre = RootNorm(stacked)
        self.linear_1 = nn.Linear(stacked, config.hidden_size, bias=False)
        self.linear_2 = nn.Linear(middle, width, bias=False)
        early = bool(config.projector_ln_mid)
        self.ln_mid: nn.Module = RootNorm(middle) if early else nn.Identity()
        self.ln_post: nn.Module = nn.Identity() if early else RootNorm(width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, width of the encoder) to (rows / stack factor, rounded up; hidden).

        What the last stack lacks is zeros.
        """
        padded = functional.pad(rows, (0, 0, 0, -len(rows) % self._stack))
        stacked = padded.reshape(len(padded) // self._stack, -1)
        middle = self._activated(self.linear_1(self.ln_pre(stacked)))
        projected: torch.Tensor = self.ln_post(self.linear_2(self.ln_mid(middle)))
        return projected

    def _activated(self, middle: torch.Tensor) -> torch.Tensor:
        if self._act != GATED:
            activated: torch.Tensor = ACT2FN[self._act](middle)
            return activated
        values, gates = middle.chunk(2, dim=-1)
        return functional.silu(gates) * values
