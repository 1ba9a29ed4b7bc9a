"""The sdpa backend against attention written out with loops over sequences."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from llm_service.runner.attention import choose_backend
from llm_service.runner.attention.context import MutualSpan, StepShape
from llm_service.runner.attention.mutual import MutualSpans
from llm_service.runner.attention.sdpa import SdpaBackend, SdpaStep
from llm_service.runner.kv_cache import KvCache
from shared.families.base import KvLayout

BLOCK_SIZE = 4
CPU = torch.device("cpu")


class Scene:
    """Sequences with random keys in a paged cache, and the same keys side by side."""

    def __init__(self, parts: list[tuple[int, int]], heads: int, key_heads: int, dtype: torch.dtype) -> None:
        """Takes (start, count) per sequence: those of one token first, the longest at the front."""
        generator = torch.Generator().manual_seed(len(parts))
        self.parts = parts
        lengths = [start + count for start, count in parts]
        blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        free = list(range(sum(blocks) + 3))
        random.Random(1).shuffle(free)
        tables = [[free.pop() for _ in range(count)] for count in blocks]
        self.cache = KvCache(KvLayout(1, key_heads, 8), sum(blocks) + 3, BLOCK_SIZE, dtype, CPU)
        self.keys = [torch.randn(length, key_heads, 8, generator=generator).to(dtype) for length in lengths]
        self.values = [torch.randn(length, key_heads, 8, generator=generator).to(dtype) for length in lengths]
        slots = [
            torch.tensor([table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(length)])
            for table, length in zip(tables, lengths, strict=True)
        ]
        for keys, values, places in zip(self.keys, self.values, slots, strict=True):
            self.cache.write(0, places, keys, values)
        total = sum(count for _, count in parts)
        self.query = torch.randn(total, heads, 8, generator=generator).to(dtype)
        widest = max(blocks)
        self.shape = StepShape(
            starts=[start for start, _ in parts],
            counts=[count for _, count in parts],
            decode_count=sum(count == 1 for _, count in parts),
            slots=torch.cat([places[start:] for places, (start, _) in zip(slots, parts, strict=True)]),
            block_tables=torch.tensor([table + [table[0]] * (widest - len(table)) for table in tables]),
            query_starts=torch.tensor([0] + [count for _, count in parts]).cumsum(0).int(),
            lengths=torch.tensor(lengths, dtype=torch.int32),
        )

    def with_mutual(self, *spans: tuple[int, int, int]) -> Scene:
        """The same with tokens (sequence, first, end) that see each other."""
        self.shape = replace(self.shape, mutual=tuple(MutualSpan(*span) for span in spans))
        return self

    def attend(self, scaling: float | None = None, window: int | None = None) -> torch.Tensor:
        """What the backend says."""
        new = [(keys[start:], values[start:]) for keys, values, (start, _) in self._rows()]
        key, value = (torch.cat(side) for side in zip(*new, strict=True))
        step = SdpaBackend().plan(self.cache, self.shape)
        return step.attend(0, self.query, key, value, scaling, window)

    def expected(self, scaling: float | None = None, window: int | None = None) -> torch.Tensor:
        """What the definition of attention says, in float64, token by token."""
        outputs, row = [], 0
        for sequence, (keys, values, (start, count)) in enumerate(self._rows()):
            for position in range(start, start + count):
                first = 0 if window is None else max(0, position - window + 1)
                seen = slice(first, self._last_seen(sequence, position) + 1)
                outputs.append(_attention(self.query[row], keys[seen], values[seen], scaling))
                row += 1
        return torch.stack(outputs)

    def _last_seen(self, sequence: int, position: int) -> int:
        for span in self.shape.mutual:
            if span.sequence == sequence and span.first <= position < span.end:
                return span.end - 1
        return position

    def _rows(self) -> list[tuple[torch.Tensor, torch.Tensor, tuple[int, int]]]:
        return list(zip(self.keys, self.values, self.parts, strict=True))


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    shared = query.shape[0] // keys.shape[1]
    keys, values = (side.double().repeat_interleave(shared, dim=1) for side in (keys, values))
    scores = torch.einsum("hd,khd->hk", query.double(), keys) * (scaling or query.shape[1] ** -0.5)
    return torch.einsum("hk,khd->hd", scores.softmax(dim=1), values)


PARTS = {
    "one decoding": [(6, 1)],
    "first token": [(0, 1)],
    "decoding of equal lengths": [(9, 1), (9, 1), (8, 1)],
    "decoding of unlike lengths": [(200, 1), (190, 1), (70, 1), (30, 1), (3, 1), (0, 1)],
    "whole prompts": [(0, 5), (0, 16), (0, 2)],
    "chunks": [(3, 5), (8, 8), (17, 2)],
    "a chunk of several tiles": [(10, 300)],
    "all at once": [(150, 1), (20, 1), (5, 1), (0, 9), (7, 140), (4, 4)],
}


@pytest.mark.parametrize("window", [None, 1, 6, 1000])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("name", PARTS)
def test_equals_definition(name: str, heads: tuple[int, int], window: int | None) -> None:
    scene = Scene(PARTS[name], *heads, torch.float32)
    torch.testing.assert_close(
        scene.attend(window=window).double(), scene.expected(window=window), atol=2e-5, rtol=0
    )


MUTUAL = {
    "a whole prompt": ([(0, 12)], [(0, 3, 9)]),
    "at the beginning and the end": ([(0, 12)], [(0, 0, 4), (0, 8, 12)]),
    "two that touch": ([(5, 12)], [(0, 6, 9), (0, 9, 15)]),
    "across tiles": ([(10, 300)], [(0, 100, 180), (0, 200, 301)]),
    "among others": ([(150, 1), (0, 9), (7, 140), (4, 4)], [(1, 2, 7), (2, 20, 140)]),
}


@pytest.mark.parametrize("window", [None, 3, 50, 1000])
@pytest.mark.parametrize("name", MUTUAL)
def test_mutual_spans_equal_definition(name: str, window: int | None) -> None:
    parts, spans = MUTUAL[name]
    scene = Scene(parts, 6, 2, torch.float32).with_mutual(*spans)
    torch.testing.assert_close(
        scene.attend(window=window).double(), scene.expected(window=window), atol=2e-5, rtol=0
    )
    causal = Scene(parts, 6, 2, torch.float32).attend(window=window)
    assert not torch.allclose(scene.attend(window=window), causal, atol=1e-2)


def test_steps_without_mutual_spans_stay_with_the_other_backend() -> None:
    class Never:
        name = "never"

        def plan(self, cache: KvCache, shape: StepShape) -> SdpaStep:
            raise LookupError

    scene = Scene([(3, 6)], 2, 1, torch.float32)
    backend = MutualSpans(Never())
    assert backend.name == "never"
    with pytest.raises(LookupError):
        backend.plan(scene.cache, scene.shape)
    backend.plan(scene.cache, scene.with_mutual((0, 4, 7)).shape)


def test_scaling_is_respected() -> None:
    scene = Scene(PARTS["all at once"], 6, 2, torch.float32)
    torch.testing.assert_close(scene.attend(0.9).double(), scene.expected(0.9), atol=2e-5, rtol=0)
    assert not torch.allclose(scene.attend(0.9), scene.attend(), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_kept(dtype: torch.dtype) -> None:
    scene = Scene(PARTS["all at once"], 6, 2, dtype)
    output = scene.attend()
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), scene.expected(), atol=3e-2, rtol=0)


def test_masks_of_one_backend_serve_growing_lengths() -> None:
    """The staircase is kept and must grow; one backend sees short, long and short again."""
    backend = SdpaBackend()
    for start in (3, 2000, 5):
        scene = Scene([(start, 7)], 2, 1, torch.float32)
        step = backend.plan(scene.cache, scene.shape)
        key, value = scene.keys[0][start:], scene.values[0][start:]
        output = step.attend(0, scene.query, key, value, None, None)
        torch.testing.assert_close(output.double(), scene.expected(), atol=2e-5, rtol=0)


def test_foreign_infinities_do_not_spread() -> None:
    """Blocks of others may hold anything: padded tables repeat a sequence's own blocks."""
    scene = Scene([(200, 1), (3, 1)], 2, 1, torch.float32)
    owned = set(scene.shape.block_tables.flatten().tolist())
    for block in set(range(scene.cache.block_count)) - owned:
        scene.cache.keys[0][block] = float("nan")
        scene.cache.values[0][block] = float("inf")
    assert scene.attend().isfinite().all()


def test_cleared_blocks_are_zero_on_every_layer() -> None:
    cache = KvCache(KvLayout(3, 2, 8), 5, BLOCK_SIZE, torch.float32, CPU)
    for layer in range(3):
        cache.keys[layer].fill_(float("nan"))
        cache.values[layer].fill_(float("nan"))
    cache.clear(torch.tensor([1, 4]))
    for side in (*cache.keys, *cache.values):
        assert (side[[1, 4]] == 0).all()
        assert side[[0, 2, 3]].isnan().all()


def test_sdpa_is_the_choice_on_cpu() -> None:
    assert choose_backend(CPU, torch.float32, 16).name == "sdpa"
