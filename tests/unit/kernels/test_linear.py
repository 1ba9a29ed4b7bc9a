"""Linear layers on the kernels equal torch's in float32, whatever their shape and their end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from shared.kernels.library import Team
from shared.kernels.operation import Activation
from shared.kernels.program import Count, Program, pack_matrix
from tests.unit.kernels.conftest import assert_near, team_of

SHAPES = [
    (1, 40, 34),
    (4, 16, 64),
    (13, 40, 34),
    (5, 1152, 896),
    (37, 48, 64),
    (100, 97, 588),
    (200, 64, 128),
]
"""Rows, columns, depth."""

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.NONE: lambda x: x,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
    Activation.SILU: functional.silu,
    Activation.RELU: functional.relu,
}


def draw(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, width).to(dtype)


def draw_weight(columns: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    """Sums of products stay around 1."""
    return (torch.randn(columns, depth) / depth**0.5).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda each: each.name)
def test_bias_activation_and_residual(
    team: Team, dtype: torch.dtype, shape: tuple[int, int, int], activation: Activation
) -> None:
    rows, columns, depth = shape
    source, residual = draw(rows, depth, dtype), draw(rows, columns, dtype)
    weight, bias = draw_weight(columns, depth, dtype), torch.randn(columns).to(dtype)
    output = torch.empty(rows, columns, dtype=dtype)
    program = Program(team, dtype, 1)
    packed = pack_matrix(team, weight)
    program.linear(Count(rows), source, packed, output, bias=bias, activation=activation, residual=residual)
    program.run()
    sums = functional.linear(source.float(), weight.float(), bias.float())
    assert_near(output, ACTIVATIONS[activation](sums) + residual.float(), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_gate_and_up(team: Team, dtype: torch.dtype, shape: tuple[int, int, int], biased: bool) -> None:
    rows, columns, depth = shape
    source = draw(rows, depth, dtype)
    gate, up = draw_weight(columns, depth, dtype), draw_weight(columns, depth, dtype)
    bias = torch.randn(2 * columns).to(dtype) if biased else None
    output = torch.empty(rows, columns, dtype=dtype)
    program = Program(team, dtype, 1)
    program.linear(Count(rows), source, pack_matrix(team, gate, up), output, bias=bias)
    program.run()
    gate_bias, up_bias = (None, None) if bias is None else bias.float().split(columns)
    gates = functional.linear(source.float(), gate.float(), gate_bias)
    ups = functional.linear(source.float(), up.float(), up_bias)
    assert_near(output, functional.silu(gates) * ups, dtype, 4)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_number_of_rows(dtype: torch.dtype, threads: int) -> None:
    """One program, its count set anew; rows beyond the count are not touched."""
    team, most = team_of(threads), 200
    source, weight = draw(most, 96, dtype), draw_weight(80, 96, dtype)
    wanted = functional.linear(source.float(), weight.float())
    output, count = torch.empty(most, 80, dtype=dtype), Count()
    program = Program(team, dtype, 1)
    program.linear(count, source, pack_matrix(team, weight), output)
    for rows in [0, *range(1, 50), 60, 72, 97, 144, 145, 199, most, 3, 0, 1]:
        output.fill_(7.0)
        count.value = rows
        program.run()
        assert_near(output[:rows], wanted[:rows], dtype)
        assert (output[rows:] == 7.0).all(), rows


@pytest.mark.parametrize("columns", range(1, 70, 3))
def test_any_number_of_columns(team: Team, dtype: torch.dtype, columns: int) -> None:
    """Nothing is written beyond the last column, and rows may lie apart."""
    whole_source, whole_output = draw(9, 60, dtype), torch.full((9, columns + 5), 7.0, dtype=dtype)
    source, output = whole_source[:, 3:37], whole_output[:, 2 : 2 + columns]
    weight = draw_weight(columns, 34, dtype)
    program = Program(team, dtype, 1)
    program.linear(Count(9), source, pack_matrix(team, weight), output)
    program.run()
    assert_near(output, functional.linear(source.float(), weight.float()), dtype)
    assert (whole_output[:, :2] == 7.0).all()
    assert (whole_output[:, 2 + columns :] == 7.0).all()


@pytest.mark.parametrize("columns", [31, 64])
def test_sums_may_stay_whole(team: Team, columns: int) -> None:
    """float32 sums of a bfloat16 layer are not rounded."""
    source, weight = draw(5, 64, torch.bfloat16), draw_weight(columns, 64, torch.bfloat16)
    output = torch.empty(5, columns)
    program = Program(team, torch.bfloat16, 1)
    program.linear(Count(5), source, pack_matrix(team, weight), output)
    program.run()
    assert_near(output, functional.linear(source.float(), weight.float()), torch.float32)


def test_an_output_may_be_its_own_residual(team: Team, dtype: torch.dtype) -> None:
    source, weight, output = draw(30, 64, dtype), draw_weight(50, 64, dtype), draw(30, 50, dtype)
    wanted = functional.linear(source.float(), weight.float()) + output.float()
    program = Program(team, dtype, 1)
    program.linear(Count(30), source, pack_matrix(team, weight), output, residual=output)
    program.run()
    assert_near(output, wanted, dtype)


def test_activations_of_extreme_numbers(team: Team) -> None:
    """Neither overflow nor what is no number, where torch has neither."""
    source = torch.tensor([[-1e30], [-200.0], [-90.0], [-1e-30], [0.0], [1e-30], [90.0], [200.0], [1e30]])
    packed = pack_matrix(team, torch.ones(1, 1))
    for activation, function in ACTIVATIONS.items():
        if activation is Activation.GELU_TANH:
            source = source.clamp(-1e9, 1e9)  # its cube is beyond float32, in torch too
        output = torch.empty(len(source), 1)
        program = Program(team, torch.float32, 1)
        program.linear(Count(len(source)), source, packed, output, activation=activation)
        program.run()
        torch.testing.assert_close(output, function(source), atol=1e-4, rtol=1e-4, msg=activation.name)


@pytest.mark.parametrize("depth", [2, 34, 64, 588])
def test_unpacked_rows_are_the_very_same(team: Team, dtype: torch.dtype, depth: int) -> None:
    weight = draw(75, depth, dtype)
    packed = pack_matrix(team, weight)
    for count in (1, 3, 200):
        index = torch.randint(0, 75, (count,))
        rows = torch.empty(count, depth, dtype=dtype)
        program = Program(team, dtype, 1)
        program.unpack(Count(count), packed, rows).index = index.data_ptr()
        program.run()
        assert torch.equal(rows, weight[index])
