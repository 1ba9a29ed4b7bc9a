"""Attention over a paged cache and over rows equals torch's in float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional

from shared.kernels.library import Team
from shared.kernels.operation import AttentionPlan
from shared.kernels.program import Count, Heads, Program
from tests.unit.kernels.conftest import assert_near, team_of

HEADS = [
    Heads(14, 2, 64),
    Heads(4, 4, 80),
    Heads(8, 2, 96),
    Heads(6, 3, 16),
    Heads(16, 1, 128),
    Heads(2, 2, 72),
    Heads(3, 3, 10),
    # A few rows read keys where they lie, of these widths in registers.
    Heads(3, 3, 64),
    Heads(4, 1, 64),
    Heads(2, 2, 128),
]
LENGTHS = [1, 17, 160, 300, 64, 128, 129, 200]
COUNTS = [1, 1, 1, 130, 64, 1, 2, 70]
"""Keys of each sequence, and how many of its last tokens ask: decoding, whole prompts and chunks."""


@dataclass
class Scene:
    """A paged cache in random order whose unused slots are no numbers, and sequences over it."""

    heads: Heads
    dtype: torch.dtype
    block_size: int
    lengths: list[int] = field(default_factory=lambda: list(LENGTHS))
    counts: list[int] = field(default_factory=lambda: list(COUNTS))

    def __post_init__(self) -> None:
        sizes = [-(-length // self.block_size) for length in self.lengths]
        ids = torch.randperm(sum(sizes) + 7)
        shape = (len(ids), self.block_size, self.heads.key, self.heads.width)
        self.keys, self.values = (torch.full(shape, float("nan"), dtype=self.dtype) for _ in range(2))
        self.tables = torch.full((len(sizes), max(sizes) + 2), 10**12, dtype=torch.int64)
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        for row, (size, blocks) in enumerate(zip(sizes, ids[: sum(sizes)].split(sizes), strict=True)):
            self.tables[row, :size] = blocks
            self.own.append((self._fill(self.keys, row), self._fill(self.values, row)))
        self.query = torch.randn(sum(self.counts), self.heads.query, self.heads.width).to(self.dtype)
        self.output = torch.full_like(self.query, float("nan"))
        self.starts = torch.tensor([0, *self.counts]).cumsum(0).to(torch.int32)
        self.key_counts = torch.tensor(self.lengths, dtype=torch.int32)

    def _fill(self, cache: torch.Tensor, row: int) -> torch.Tensor:
        """Random numbers in a sequence's own slots; returns them, (keys, key heads, width)."""
        numbers = torch.randn(self.lengths[row], *cache.shape[2:]).to(self.dtype)
        for position in range(self.lengths[row]):
            block = int(self.tables[row, position // self.block_size])
            cache[block, position % self.block_size] = numbers[position]
        return numbers

    def plan(self, window: int) -> AttentionPlan:
        heads = self.heads
        return AttentionPlan(
            query=self.query.data_ptr(),
            key=self.keys.data_ptr(),
            value=self.values.data_ptr(),
            output=self.output.data_ptr(),
            starts=self.starts.data_ptr(),
            lengths=self.key_counts.data_ptr(),
            tables=self.tables.data_ptr(),
            table_stride=self.tables.stride(0),
            block_size=self.block_size,
            heads=heads.query,
            key_heads=heads.key,
            width=heads.width,
            query_stride=self.query.stride(0),
            key_stride=heads.key * heads.width,
            output_stride=self.output.stride(0),
            window=window,
            causal=1,
            scale=heads.width**-0.5,
        )

    def run(self, team: Team, window: int = 0) -> torch.Tensor:
        program = Program(team, self.dtype, 1)
        program.attention(Count(len(self.lengths)), self.plan(window))
        program.run()
        return self.output

    def expected(self, window: int = 0) -> torch.Tensor:
        """float32 (rows, heads, width) of torch."""
        parts = []
        for row, (keys, values) in enumerate(self.own):
            positions = torch.arange(self.lengths[row] - self.counts[row], self.lengths[row])[:, None]
            seen = torch.arange(self.lengths[row])[None]
            mask = (seen <= positions) & (seen > positions - (window or 10**6))
            query = self.query[self.starts[row] : self.starts[row + 1]]
            parts.append(attend(query, keys, values, mask))
        return torch.cat(parts)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows x heads x width of each, computed by torch in float32."""
    group = query.shape[1] // keys.shape[1]
    states = [query.float().transpose(0, 1)]
    states += [each.float().transpose(0, 1).repeat_interleave(group, 0) for each in (keys, values)]
    return functional.scaled_dot_product_attention(*states, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_decoding_chunks_and_prompts_in_one_run(
    team: Team, dtype: torch.dtype, heads: Heads, block_size: int
) -> None:
    """What is no number in other slots reaches nobody, nor does a table's tail."""
    scene = Scene(heads, dtype, block_size)
    assert_near(scene.run(team), scene.expected(), dtype)


@pytest.mark.parametrize("window", [1, 5, 40, 128, 1000])
@pytest.mark.parametrize("heads", HEADS[1:4], ids=str)
def test_windows(team: Team, dtype: torch.dtype, heads: Heads, window: int) -> None:
    scene = Scene(heads, dtype, 16)
    assert_near(scene.run(team, window), scene.expected(window), dtype)


@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("heads", [HEADS[0], HEADS[3]], ids=str)
def test_prompts_of_several_tiles(team: Team, dtype: torch.dtype, heads: Heads, window: int) -> None:
    """Keys are packed once for many rows, of which some see none of a block of them."""
    scene = Scene(heads, dtype, 16, [2100, 40], [1900, 1])
    assert_near(scene.run(team, window), scene.expected(window), dtype)


@pytest.mark.parametrize("threads", [1, 4])
def test_teams_of_other_sizes(dtype: torch.dtype, threads: int) -> None:
    scene = Scene(HEADS[0], dtype, 16)
    assert_near(scene.run(team_of(threads)), scene.expected(), dtype)


def test_great_scores_do_not_overflow(team: Team, dtype: torch.dtype) -> None:
    """The softmax is relative to the greatest score, which may come last."""
    scene = Scene(HEADS[3], dtype, 16)
    scene.query *= 60
    output = scene.run(team)
    assert output.isfinite().all()
    assert_near(output, scene.expected(), dtype, 4)


def test_sequences_without_rows_are_skipped(team: Team, dtype: torch.dtype) -> None:
    scene = Scene(HEADS[0], dtype, 16, [0, 30, 0, 5, 0], [0, 3, 0, 1, 0])
    assert_near(scene.run(team), scene.expected(), dtype)


@pytest.mark.parametrize(
    "heads", [Heads(2, 2, 16), Heads(3, 3, 72), Heads(2, 2, 80), Heads(4, 2, 64)], ids=str
)
@pytest.mark.parametrize("runs", [[1], [577], [30, 70, 1, 129, 64], [1700, 20]], ids=str)
def test_runs_attend_to_themselves(team: Team, dtype: torch.dtype, heads: Heads, runs: list[int]) -> None:
    """Keys as rows of the queries' own buffer, in both directions."""
    rows, width = sum(runs), heads.width
    states = torch.randn(rows, heads.query + 2 * heads.key, width).to(dtype)
    output = torch.empty(rows, heads.query, width, dtype=dtype)
    starts = torch.tensor([0, *runs]).cumsum(0).to(torch.int32)
    plan = AttentionPlan(
        query=states.data_ptr(),
        key=states[:, heads.query].data_ptr(),
        value=states[:, heads.query + heads.key].data_ptr(),
        output=output.data_ptr(),
        starts=starts.data_ptr(),
        heads=heads.query,
        key_heads=heads.key,
        width=width,
        query_stride=states.stride(0),
        key_stride=states.stride(0),
        output_stride=output.stride(0),
        causal=0,
        scale=width**-0.5,
    )
    program = Program(team, dtype, 1)
    program.attention(Count(len(runs)), plan)
    program.run()
    cuts = [heads.query, heads.key, heads.key]
    wanted = torch.cat([attend(*part.split(cuts, 1)) for part in states.split(runs)])
    assert_near(output, wanted, dtype)
