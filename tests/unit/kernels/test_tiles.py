"""Linear layers and attention on emulated tile registers; the real ones compile.

The emulation ends the process where the processor would fault.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from shared.kernels.build import ENTRY, FLAGS, _find_compiler, build
from shared.kernels.library import Library, Team
from shared.kernels.operation import Activation, AttentionPlan
from shared.kernels.program import Count, PackedMatrix, Program, pack_matrix
from tests.unit.kernels.conftest import assert_near, team_of
from tests.unit.kernels.test_attention import attend

BFLOAT16 = torch.bfloat16
MOST_ROWS = 70


@pytest.fixture
def tiles() -> Team:
    """Two threads with emulated tiles."""
    return team_of(2, "tiles")


def draw_whole(*shape: int) -> torch.Tensor:
    """Small whole numbers: no sum is rounded, whatever its order."""
    return torch.randint(-3, 4, shape).to(BFLOAT16)


def with_guard(matrix: PackedMatrix) -> PackedMatrix:
    """The same matrix, with what is no number after its end."""
    panels = torch.cat([matrix.panels, torch.full((4096,), float("nan"), dtype=BFLOAT16)])
    return PackedMatrix(panels, matrix.columns, matrix.depth, matrix.gated)


@pytest.mark.parametrize("columns", [1, 33, 79])
@pytest.mark.parametrize("depth", [34, 62, 64, 72, 588, 1176])
def test_any_number_of_rows(tiles: Team, columns: int, depth: int) -> None:
    """Sums are exact; nothing is read beyond a row's or the matrix's end, nor written beyond the last row."""
    whole = torch.full((MOST_ROWS, depth + 64), float("nan"), dtype=BFLOAT16)
    whole[:, :depth] = draw_whole(MOST_ROWS, depth)
    source, weight = whole[:, :depth], draw_whole(columns, depth)
    wanted = source.float() @ weight.float().T
    output, count = torch.empty(MOST_ROWS, columns), Count()
    program = Program(tiles, BFLOAT16, 1)
    program.linear(count, source, with_guard(pack_matrix(tiles, weight)), output)
    for rows in range(1, MOST_ROWS + 1):
        output.fill_(7.0)
        count.value = rows
        program.run()
        assert torch.equal(output[:rows], wanted[:rows]), rows
        assert (output[rows:] == 7.0).all(), rows


@pytest.mark.parametrize("rows", [16, 17, 31, 47, 300])
def test_a_residual_is_added_once(tiles: Team, rows: int) -> None:
    """Also to rows whose sums are computed twice, and where the output is the residual itself."""
    source, weight, output = draw_whole(rows, 64), draw_whole(40, 64) / 8, draw_whole(rows, 40)
    wanted = output.float() + source.float() @ weight.float().T
    program = Program(tiles, BFLOAT16, 1)
    program.linear(Count(rows), source, pack_matrix(tiles, weight), output, residual=output)
    program.run()
    assert_near(output, wanted, BFLOAT16)


@pytest.mark.parametrize(("rows", "depth"), [(130, 9000), (300, 2500), (470, 1176), (600, 96)])
def test_many_rows_are_taken_in_parts(tiles: Team, rows: int, depth: int) -> None:
    """Of rows, and of what is too deep: sums that wait for more stay exact."""
    source, weight = draw_whole(rows, depth), draw_whole(65, depth)
    output = torch.full((rows + 1, 65), 7.0)
    program = Program(tiles, BFLOAT16, 1)
    program.linear(Count(rows), source, with_guard(pack_matrix(tiles, weight)), output[:rows])
    program.run()
    assert torch.equal(output[:rows], source.float() @ weight.float().T)
    assert (output[rows:] == 7.0).all()


@pytest.mark.parametrize(("columns", "stride"), [(1024, 1024), (1000, 1024), (1000, 1002)])
@pytest.mark.parametrize("in_place", [False, True])
def test_outputs_that_no_cache_holds(tiles: Team, columns: int, stride: int, in_place: bool) -> None:
    """Whole lines go past the caches, others do not; nothing is written beyond a row's end."""
    rows = 2200
    source, weight, bias = draw_whole(rows, 40), draw_whole(columns, 40) / 8, draw_whole(1, columns)[0]
    output = draw_whole(rows, stride)
    residual = output[:, :columns] if in_place else draw_whole(rows, columns)
    wanted = residual.float() + functional.gelu(source.float() @ weight.float().T + bias.float())
    behind = output[:, columns:].clone()
    program = Program(tiles, BFLOAT16, 1)
    program.linear(
        *(Count(rows), source, pack_matrix(tiles, weight), output[:, :columns]),
        bias=bias,
        activation=Activation.GELU,
        residual=residual,
    )
    program.run()
    assert_near(output[:, :columns], wanted, BFLOAT16)
    assert torch.equal(output[:, columns:], behind)


def sums_that_show_their_order(team: Team, rows: int) -> set[float]:
    """Even and odd elements summed apart give 2; one after the other, the ones are rounded off."""
    source = torch.tensor([[2.0**27, 1.0, -(2.0**27), 1.0]], dtype=BFLOAT16).repeat(rows, 1)
    output = torch.empty(rows, 5)
    program = Program(team, BFLOAT16, 1)
    weight = pack_matrix(team, torch.ones(5, 4, dtype=BFLOAT16))
    program.linear(Count(rows), source, weight, output)
    program.run()
    return set(output.flatten().tolist())


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17])
def test_any_number_of_rows_goes_to_tiles(tiles: Team, rows: int) -> None:
    """So what a row comes to does not change with how many others are computed beside it."""
    assert sums_that_show_their_order(tiles, rows) == {2.0}


def test_a_system_that_gives_no_leave_sees_no_tile_instruction() -> None:
    """The emulation faults at the first one."""
    refused = Library(build((*FLAGS, "-DPERCEPT_EMULATE_TILES", "-DPERCEPT_REFUSE_TILES"))).make_team(2)
    assert 2.0 not in sums_that_show_their_order(refused, 40)


@pytest.mark.parametrize("width", [34, 64, 72, 128])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_of_rows(tiles: Team, width: int, causal: int) -> None:
    """Runs of one row to several blocks of keys attend to themselves, two query heads to a key head."""
    lengths = [1, 7, 16, 33, 70, 131, 200]
    heads, key_heads, rows = 4, 2, sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    query = torch.randn(rows, heads, width).to(BFLOAT16)
    key, value = torch.randn(2, rows, key_heads, width).to(BFLOAT16)
    output = torch.full_like(query, float("nan"))
    plan = AttentionPlan(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        output=output.data_ptr(),
        starts=starts.data_ptr(),
        heads=heads,
        key_heads=key_heads,
        width=width,
        query_stride=heads * width,
        key_stride=key_heads * width,
        output_stride=heads * width,
        causal=causal,
        scale=width**-0.5,
    )
    program = Program(tiles, BFLOAT16, 1)
    program.attention(Count(len(lengths)), plan)
    program.run()
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        mask = torch.ones(end - first, end - first, dtype=torch.bool)
        mask = mask.tril() if causal else mask
        wanted = attend(query[first:end], key[first:end], value[first:end], mask)
        assert_near(output[first:end], wanted, BFLOAT16)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compilers for other processors know no tiles")
@pytest.mark.parametrize("define", [None, "-DPERCEPT_NO_TILES"])
def test_the_instructions_compile(tmp_path: Path, define: str | None) -> None:
    """Four multiplications for four loads, with no memory in between; none where they are left out."""
    flags = ["-march=sapphirerapids" if flag == "-march=native" else flag for flag in FLAGS]
    command = [_find_compiler(), *flags, "-Wall", "-Wextra", "-save-temps=obj", str(ENTRY), "-o", "tiles.so"]
    subprocess.run([*command, *([define] if define else [])], cwd=tmp_path, check=True, timeout=180)
    (assembly,) = tmp_path.glob("*.s")
    words = (line.split()[0] for line in assembly.read_text().splitlines() if line.strip())
    steps = "".join({"tileloadd": "L", "tileloaddt1": "l", "tdpbf16ps": "M"}.get(word, "") for word in words)
    assert all((order in steps) == (define is None) for order in ("LLMLMLMM", "LlMLMlMM"))
