"""The fused decoder against the modeling code that it replaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llm_service.runner.attention.context import AttentionContext, MutualSpan, StepShape
from llm_service.runner.attention.mutual import MutualSpans
from llm_service.runner.attention.sdpa import SdpaBackend
from llm_service.runner.attention.triton_paged import TritonBackend
from llm_service.runner.fused_decoder import FusedDecoder
from llm_service.runner.fused_kernels import add_and_norm, gate
from llm_service.runner.kv_cache import KvCache
from shared.families.decoder import Decoder
from tests.unit.runner.conftest import Tinies
from tests.unit.runner.driver import BLOCK_SIZE
from tests.unit.runner.paged_scene import DEVICE

BLOCKS = 24


def step_shape(starts: list[int], counts: list[int], tables: list[list[int]]) -> StepShape:
    """A step whose sequences own the blocks of `tables`."""
    slots = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for table, start, count in zip(tables, starts, counts, strict=True)
        for position in range(start, start + count)
    ]
    return StepShape(
        starts=starts,
        counts=counts,
        decode_count=sum(count == 1 for count in counts),
        slots=torch.tensor(slots, device=DEVICE),
        block_tables=torch.tensor(tables, device=DEVICE),
        query_starts=torch.tensor([0, *counts], device=DEVICE).cumsum(0).int(),
        lengths=torch.tensor([a + b for a, b in zip(starts, counts, strict=True)], device=DEVICE).int(),
    )


def run_steps(model: Decoder | FusedDecoder, backend: SdpaBackend | TritonBackend) -> list[torch.Tensor]:
    """Hidden states of a step with two prompts and of one that decodes and goes on with a prompt."""
    cache = KvCache(model.kv_layout, BLOCKS, BLOCK_SIZE, torch.float32, DEVICE)
    tables = [[3, 9, 1, 7], [4, 2, 8, 0]]
    found = []
    for starts, counts in (([0, 0], [5, 9]), ([5, 9], [1, 4])):
        shape = step_shape(starts, counts, tables)
        positions = torch.cat(
            [torch.arange(a, a + b, device=DEVICE) for a, b in zip(starts, counts, strict=True)]
        )
        # The axes differ, as within a picture.
        positions = torch.stack([positions, positions * 2, positions + 3])
        embeds = model.embed(positions[0] + 11)
        context = AttentionContext(cache, shape.slots, backend.plan(cache, shape), shape)
        further: dict[str, Any] = {}
        if model.extra_widths:
            further["extras"] = {name: embeds * (place + 1) for place, name in enumerate(model.extra_widths)}
        hidden = model.forward(
            embeds, positions[: 3 if model_axes(model) == 3 else 1], attention_context=context, **further
        )
        found.append(model.logits(hidden))
    return found


def model_axes(model: Decoder | FusedDecoder) -> int:
    """How many axes of positions a model takes."""
    return model.axes if isinstance(model, Decoder) else int(model.axes.max()) + 1


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "llava", "qwen3_vl"])
def test_equals_the_modeling_code(model_type: str, tinies: Tinies) -> None:
    family = tinies(model_type).checkpoint.family

    def load() -> Decoder:
        model = family.language_model(DEVICE, torch.float32, "percept_paged")
        assert isinstance(model, Decoder)
        return model

    expected = run_steps(load(), SdpaBackend())
    found = run_steps(FusedDecoder(load()), TritonBackend(4))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)
        assert torch.equal(one.argmax(1), other.argmax(1))


def test_spans_that_see_each_other_are_not_for_it(tinies: Tinies) -> None:
    """They would be computed from wrong keys, and nothing would tell."""
    loaded = tinies("qwen2_vl").checkpoint.family.language_model(DEVICE, torch.float32, "percept_paged")
    assert isinstance(loaded, Decoder)
    model, backend = FusedDecoder(loaded), MutualSpans(TritonBackend(4))
    cache = KvCache(model.kv_layout, BLOCKS, BLOCK_SIZE, torch.float32, DEVICE)
    shape = replace(step_shape([0], [5], [[3, 9]]), mutual=(MutualSpan(0, 1, 4),))
    positions = torch.arange(5, device=DEVICE).expand(3, -1)
    context = AttentionContext(cache, shape.slots, backend.plan(cache, shape), shape)
    with pytest.raises(AssertionError, match="causal attention alone"):
        model.forward(model.embed(positions[0]), positions, attention_context=context)


@pytest.mark.parametrize("width", [64, 100, 3000])
@pytest.mark.parametrize("adds", [True, False])
def test_norm(width: int, adds: bool) -> None:
    rows, residual = (torch.randn(3, width, device=DEVICE) for _ in range(2))
    weight = torch.randn(width, device=DEVICE)
    grown = rows + residual if adds else rows.clone()
    output = add_and_norm(rows, residual, weight, 1e-6, adds=adds)
    torch.testing.assert_close(residual, grown)
    expected = torch.nn.functional.rms_norm(grown, (width,), weight, 1e-6)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [3, 1024, 1500])
def test_gate(width: int) -> None:
    gated = torch.randn(2, 2 * width, device=DEVICE) * 20
    first, second = gated.split(width, dim=1)
    torch.testing.assert_close(gate(gated), torch.nn.functional.silu(first) * second, atol=1e-5, rtol=1e-5)
