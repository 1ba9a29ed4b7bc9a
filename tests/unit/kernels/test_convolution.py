"""Convolutions along time on the kernels equal torch's in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from shared.kernels.convolution import KernelConvolution
from shared.kernels.library import Team
from shared.kernels.operation import Activation
from tests.unit.kernels.conftest import assert_near


@pytest.mark.parametrize("inputs", [2, 80])
@pytest.mark.parametrize(("width", "step", "padding"), [(3, 1, 1), (3, 2, 1), (4, 3, 0), (5, 1, 2)])
@pytest.mark.parametrize("frames", [5, 6, 301])
@torch.inference_mode()
def test_frames_at_the_edges_too(
    team: Team, dtype: torch.dtype, inputs: int, width: int, step: int, padding: int, frames: int
) -> None:
    convolution = nn.Conv1d(inputs, 40, width, stride=step, padding=padding).to(dtype)
    rows = torch.randn(frames, inputs).to(dtype)
    wanted = functional.gelu(convolution.float()(rows.float().T))
    layer = KernelConvolution(team, convolution.to(dtype), Activation.GELU)
    for source in (rows, rows.T.contiguous().T):  # spectrograms come with their frames side by side
        assert_near(layer(source), wanted.T, dtype)


def test_no_bias(team: Team, dtype: torch.dtype) -> None:
    convolution = nn.Conv1d(8, 6, 3, padding=1, bias=False).to(dtype)
    rows = torch.randn(9, 8).to(dtype)
    wanted = functional.conv1d(rows.float().T, convolution.weight.data.float(), padding=1)
    assert_near(KernelConvolution(team, convolution, Activation.NONE)(rows), wanted.T, dtype)
