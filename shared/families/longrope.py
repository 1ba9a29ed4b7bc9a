"""LongRoPE: rotary frequencies of two kinds, for sequences up to a length and beyond it.

transformers takes one kind for a whole batch, by its longest sequence; here each row
has that of its own sequence, as when it is computed alone. The frequencies are those of
transformers' own function. Knows rows. Does not know when a sequence is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shared.families.base import RowRun


def switch_length(config: Any) -> int | None:
    """Tokens up to which a text configuration's short frequencies hold; None where it has one kind."""
    rope = config.rope_parameters
    return int(rope["original_max_position_embeddings"]) if rope["rope_type"] == "longrope" else None


class LongRope(nn.Module):
    """Takes the place of a modeling code's rotary embedding of the type "longrope"."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__()
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        compute, length = ROPE_INIT_FUNCTIONS["longrope"], switch_length(config)
        assert length is not None, "frequencies of one kind"
        self._short, self._factor = compute(config, device, seq_len=length)
        self._long, _ = compute(config, device, seq_len=length + 1)
        self._frequencies: torch.Tensor = self._short

    def choose(self, runs: Sequence[RowRun]) -> None:
        """Takes the runs of a step; () where all rows are of short sequences."""
        switched = [run.switched for run in runs]
        if not any(switched):
            self._frequencies = self._short
        elif all(switched):
            self._frequencies = self._long
        else:
            rows = [long for run, long in zip(runs, switched, strict=True) for _ in range(run.count)]
            chosen = torch.tensor(rows, device=self._short.device).unsqueeze(-1)
            self._frequencies = torch.where(chosen, self._long, self._short)

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (1, tokens) to cosines and sines (1, tokens, rotated width), in the states' type."""
        angles = position_ids.unsqueeze(-1).float() * self._frequencies
        both = torch.cat((angles, angles), dim=-1)
        cosines, sines = both.cos() * self._factor, both.sin() * self._factor
        return cosines.to(states.dtype), sines.to(states.dtype)
