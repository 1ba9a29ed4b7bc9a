"""Random choice by the inverse of the distribution function, one number per token.

The number is a hash of the seed and of the token's index in the output. A draw
is thus repeatable whatever ran before or beside it, after a preemption too,
and there is no generator to keep.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence as Rows

import torch

from llm_service.engine.messages import SamplingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.sampling.truncation import truncate
from llm_service.runner.transfer import to_device

_LEAST_TEMPERATURE = 1e-30
"""Lower ones would be zero in float32."""


class Draws:
    """Draws tokens. Sequences without a seed hang on a secret of the process."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(16)

    def draw(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
        """Chooses one token per row.

        Args:
            logits: (sequences, vocabulary), adjusted; overwritten.
            sequences: one per row, all with a temperature above 0.

        Returns:
            int64 (sequences,) token ids.
        """
        settings = [sequence.sampling for sequence in sequences]
        _scale(logits, settings)
        truncate(logits, settings)
        numbers = [self.number(sequence) for sequence in sequences]
        return _invert(logits.exp_().cumsum(dim=1), numbers)

    def number(self, sequence: Sequence) -> float:
        """The next token's number, uniform in [0, 1)."""
        seed = sequence.sampling.seed
        origin = f"{self._secret}/{sequence.sequence_id}" if seed is None else str(seed)
        digest = hashlib.blake2b(f"{origin}:{sequence.output_count}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _scale(logits: torch.Tensor, settings: list[SamplingSettings]) -> None:
    """Subtracts each row's greatest before dividing, so that a tiny temperature cannot overflow."""
    logits -= logits.amax(dim=1, keepdim=True)
    temperatures = [max(each.temperature, _LEAST_TEMPERATURE) for each in settings]
    logits /= to_device(temperatures, logits.dtype, logits.device)[:, None]


def _invert(cumulative: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    """First token of each row whose running weight exceeds the number's share of the total."""
    total = cumulative[:, -1:]
    share = to_device(numbers, total.dtype, total.device)[:, None] * total
    # Rounding may lift the share to the total itself, beyond the last token.
    share = torch.minimum(share, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, share, right=True)[:, 0]
