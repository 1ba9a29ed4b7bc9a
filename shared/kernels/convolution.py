"""Convolutions along time on our kernels: linear layers of rows that overlap.

Knows that the frames which a step looks at lie one after the other in memory, so that nothing is
copied for it. Does not know spectrograms nor families.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from shared.kernels.blocks import Linear
from shared.kernels.library import Team
from shared.kernels.operation import Activation
from shared.kernels.program import Count, Program, pack_matrix


class KernelConvolution:
    """activation(convolution(rows)) of (frames, inputs) rows."""

    def __init__(self, team: Team, convolution: nn.Conv1d, activation: Activation) -> None:
        """Copies the weights; the module keeps its own.

        Args:
            convolution: of one group, without dilation; the number of weights of an output is even.
        """
        assert convolution.groups == 1 and convolution.dilation == (1,), "frames that are not neighbours"
        assert isinstance(convolution.padding, tuple), "padding by name"
        (self._width,), (self._step,), (self._padding,) = (
            convolution.kernel_size,
            convolution.stride,
            convolution.padding,
        )
        self._team = team
        self._activation = activation
        weight = convolution.weight.data.permute(0, 2, 1).flatten(1)
        bias = None if convolution.bias is None else convolution.bias.data
        self._layer = Linear(pack_matrix(team, weight), bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(frames, inputs) to (steps, outputs), as torch pads and counts."""
        padded = functional.pad(rows, (0, 0, self._padding, self._padding)).contiguous()
        inputs = padded.shape[1]
        steps = (len(padded) - self._width) // self._step + 1
        looked_at = padded.as_strided((steps, self._width * inputs), (self._step * inputs, 1))
        output = rows.new_empty(steps, self._layer.weight.columns)
        program = Program(self._team, rows.dtype, 1)
        program.linear(
            Count(steps),
            looked_at,
            self._layer.weight,
            output,
            bias=self._layer.bias,
            activation=self._activation,
        )
        program.run()
        return output
