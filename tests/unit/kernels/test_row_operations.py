"""Norms, angles, rotations and sums equal torch's in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shared.kernels.library import Team
from shared.kernels.program import Count, HeadNorms, Heads, Program
from tests.unit.kernels.conftest import assert_near


@pytest.mark.parametrize(("rows", "width"), [(1, 5), (3, 16), (70, 34), (12, 896), (129, 1280)])
@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_norms(team: Team, dtype: torch.dtype, rows: int, width: int, shift: float) -> None:
    """Of rows that lie apart; a layer norm also far from zero, where squares would cancel."""
    whole = (torch.randn(rows, width + 3) + shift).to(dtype)
    source, output = whole[:, 1 : width + 1], torch.full((rows, width + 2), 7.0, dtype=dtype)
    weight, bias = torch.randn(width).to(dtype), torch.randn(width).to(dtype)
    x = source.float()
    scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.float()
    centred = functional.layer_norm(x, (width,), weight.float(), bias.float(), 1e-6)
    for wanted, how in ((scaled, {}), (centred, {"bias": bias, "centred": True})):
        program = Program(team, dtype, 1)
        program.norm(Count(rows), source, weight, output[:, :width], 1e-6, **how)  # type: ignore[arg-type]
        program.run()
        assert_near(output[:, :width], wanted, dtype, 3)
        assert (output[:, width:] == 7.0).all()


@pytest.mark.parametrize("axis_count", [1, 3])
@pytest.mark.parametrize("width", [16, 64, 80])
def test_angles(team: Team, axis_count: int, width: int) -> None:
    """Each frequency takes its axis; the same positions may stand for all axes."""
    half, rows = width // 2, 50
    frequencies = 1e6 ** (-torch.arange(half) / half)
    axes = torch.arange(half, dtype=torch.int32) % axis_count
    own = torch.randint(0, 30_000, (axis_count, rows + 4))[:, :rows]
    shared = own[:1].expand(axis_count, -1)
    cosines, sines = torch.empty(rows, half), torch.empty(rows, half)
    program = Program(team, torch.float32, 1)
    step = program.angles(Count(rows), cosines, sines, frequencies, axes, 1.25)
    for positions in (own, shared):
        step.positions, step.position_stride = positions.data_ptr(), positions.stride(0)
        program.run()
        angles = positions[axes.long()].T.float() * frequencies
        torch.testing.assert_close(cosines, angles.cos() * 1.25, atol=1e-6, rtol=0)
        torch.testing.assert_close(sines, angles.sin() * 1.25, atol=1e-6, rtol=0)


def rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """(rows, heads, width) with cosines and sines (rows, width / 2), as transformers does it."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    whole = [torch.cat([part, part], dim=-1).unsqueeze(1) for part in (cosines, sines)]
    return states * whole[0] + turned * whole[1]


@pytest.mark.parametrize(
    "heads", [Heads(14, 2, 64), Heads(4, 4, 80), Heads(6, 3, 16), Heads(2, 1, 6)], ids=str
)
@pytest.mark.parametrize("cached", [False, True])
def test_rotation(team: Team, dtype: torch.dtype, heads: Heads, cached: bool) -> None:
    """Values stay; with caches, keys and values go to the rows' slots and nowhere else."""
    rows, width = 37, heads.width
    states = torch.randn(rows, heads.query + 2 * heads.key, width).to(dtype)
    angles = torch.randn(rows, width // 2)
    cosines, sines = angles.cos(), angles.sin()
    turning = heads.query + heads.key
    wanted = torch.cat([rotated(states[:, :turning].float(), cosines, sines), states[:, turning:].float()], 1)
    caches = torch.full((2, 90, heads.key, width), 7.0, dtype=dtype)
    slots = torch.randperm(90)[:rows]
    program, flat = Program(team, dtype, 1), states.view(rows, -1)
    pair = (caches[0], caches[1]) if cached else None
    program.rotate(Count(rows), flat, heads, cosines, sines, pair).slots = slots.data_ptr()
    program.run()
    assert_near(states, wanted, dtype)
    if cached:
        assert torch.equal(caches[0, slots], states[:, heads.query : turning])
        assert torch.equal(caches[1, slots], states[:, turning:])
        slots_left = torch.ones(90, dtype=torch.bool).index_fill(0, slots, False)
        assert (caches[:, slots_left] == 7.0).all()
    else:
        assert (caches == 7.0).all()


@pytest.mark.parametrize("heads", [Heads(14, 2, 64), Heads(6, 3, 16), Heads(2, 1, 6)], ids=str)
def test_heads_are_normed_before_they_turn(team: Team, dtype: torch.dtype, heads: Heads) -> None:
    """Each by itself, queries and keys with weights of their own; values are neither normed nor turned."""
    rows, width = 37, heads.width
    states = torch.randn(rows, heads.query + 2 * heads.key, width).to(dtype) * 5
    norms = HeadNorms(torch.randn(width).to(dtype), torch.randn(width).to(dtype), 1e-3)
    angles = torch.randn(rows, width // 2)
    x = states.float()
    scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
    query, key, _ = scaled.split([heads.query, heads.key, heads.key], dim=1)
    normed = torch.cat([query * norms.query.float(), key * norms.key.float()], 1).to(dtype).float()
    turned, value = rotated(normed, angles.cos(), angles.sin()), x[:, heads.query + heads.key :]
    program = Program(team, dtype, 1)
    program.rotate(Count(rows), states.view(rows, -1), heads, angles.cos(), angles.sin(), None, norms)
    program.run()
    assert_near(states, torch.cat([turned, value], 1), dtype, 3)


@pytest.mark.parametrize(("rows", "width"), [(1, 5), (3, 16), (70, 34), (129, 1280)])
def test_rows_are_added(team: Team, dtype: torch.dtype, rows: int, width: int) -> None:
    """To rows that lie apart; none where none count, whatever the addend points at."""
    whole, addend = torch.randn(rows, width + 3).to(dtype), torch.randn(rows, width + 1).to(dtype)
    before, count = whole.clone(), Count(0)
    program = Program(team, dtype, 1)
    step = program.add(count, whole[:, :width])
    program.run()
    assert torch.equal(whole, before)
    step.input, step.input_stride, count.value = addend.data_ptr(), addend.stride(0), rows
    program.run()
    assert_near(whole[:, :width], before[:, :width].float() + addend[:, :width].float(), dtype)
    assert torch.equal(whole[:, width:], before[:, width:])
