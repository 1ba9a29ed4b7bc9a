"""A transformer block on packed weights where not every row sees all others.

Linear layers run on our kernels; attention under a mask, which these have not, on torch's.
Knows the same pre-norm blocks as `blocks.py`, without rotation. Does not know families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from shared.kernels.blocks import BlockWeights, KernelLinear, Norm
from shared.kernels.library import Team
from shared.kernels.operation import Activation


def _quick_gelu(values: torch.Tensor) -> torch.Tensor:
    return values * torch.sigmoid(1.702 * values)


def _tanh_gelu(values: torch.Tensor) -> torch.Tensor:
    return functional.gelu(values, approximate="tanh")


_FUNCTIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: _tanh_gelu,
    Activation.QUICK_GELU: _quick_gelu,
    Activation.SILU: functional.silu,
    Activation.RELU: functional.relu,
}


class MaskedBlock:
    """One block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, weights: BlockWeights, team: Team) -> None:
        assert weights.heads.query == weights.heads.key, "as many heads of keys as of queries"
        self._weights = weights
        self._states, self._output, self._widen, self._narrow = (
            KernelLinear(team, layer)
            for layer in (weights.states, weights.output, weights.widen, weights.narrow)
        )
        self._activation = _FUNCTIONS[weights.activation]

    def __call__(self, rows: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """Runs rows (rows, width) of which each attends to those that `sees`, bool (rows, rows), says."""
        heads = self._weights.heads
        states = self._states(_normed(rows, self._weights.attention_norm))
        query, key, value = states.view(len(rows), 3, heads.query, heads.width).permute(1, 2, 0, 3)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        middle = rows + self._output(attended.transpose(0, 1).reshape(len(rows), -1))
        fed = self._activation(self._widen(_normed(middle, self._weights.feed_norm)))
        result: torch.Tensor = middle + self._narrow(fed)
        return result


def _normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    assert norm.centred, "a layer norm"
    return functional.layer_norm(rows, rows.shape[-1:], norm.weight, norm.bias, norm.epsilon)
