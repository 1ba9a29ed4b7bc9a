"""The Triton backend against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from llm_service.runner.attention.triton_paged import TritonBackend, split_count, write_slots
from tests.unit.runner.paged_scene import DEVICE, PagedScene, Sizes, whole_bfloat16

PARTS = {
    "first token": [(0, 1)],
    "decoding": [(130, 1), (63, 1), (16, 1), (15, 1)],
    "whole prompts": [(0, 5), (0, 33)],
    "chunks behind a prefix": [(37, 17), (3, 2)],
    "all at once": [(200, 1), (20, 1), (0, 9), (70, 40), (4, 4)],
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def check(parts: list[tuple[int, int]], sizes: Sizes, processors: int = 8, window: int | None = None) -> None:
    scene = PagedScene(parts, sizes)
    output = scene.attend(TritonBackend(processors), window=window)
    assert output.dtype == sizes.dtype
    torch.testing.assert_close(
        output.cpu().double(), scene.expected(window=window), atol=TOLERANCE[sizes.dtype], rtol=0
    )


@pytest.mark.parametrize("window", [None, 1, 24, 1000])
@pytest.mark.parametrize("name", PARTS)
def test_equals_the_reference(name: str, window: int | None) -> None:
    check(PARTS[name], Sizes(), window=window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 80, 96, 128])
@pytest.mark.parametrize("block_size", [16, 32])
def test_every_head_width_and_block_size(width: int, block_size: int, dtype: torch.dtype) -> None:
    check(PARTS["all at once"], Sizes(width=width, block_size=block_size, dtype=dtype))


@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (14, 2), (20, 1)])
def test_every_ratio_of_heads(heads: tuple[int, int]) -> None:
    check(PARTS["all at once"], Sizes(*heads, dtype=torch.float16))


@pytest.mark.parametrize("processors", [1, 3, 200])
def test_the_number_of_splits_does_not_matter(processors: int) -> None:
    check([(700, 1), (300, 1), (2, 1)], Sizes(block_size=4), processors)
    check([(700, 1), (300, 1), (2, 1)], Sizes(block_size=4), processors, window=70)


def test_scaling_is_respected() -> None:
    scene = PagedScene(PARTS["all at once"], Sizes())
    backend = TritonBackend(8)
    torch.testing.assert_close(
        scene.attend(backend, 0.9).cpu().double(), scene.expected(0.9), atol=1e-5, rtol=0
    )
    assert not torch.allclose(scene.attend(backend, 0.9), scene.attend(backend), atol=1e-2)


@pytest.mark.parametrize(
    ("programs", "longest", "processors", "expected"),
    [
        (4, 32768, 132, 64),
        (4, 100, 132, 1),
        (256, 32768, 132, 1),
        (32, 8192, 132, 4),
        (1, 1, 132, 1),
        (4, 0, 132, 1),
    ],
)
def test_splits_fill_the_device_and_no_more(
    programs: int, longest: int, processors: int, expected: int
) -> None:
    assert split_count(programs, longest, processors) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writes_keys_and_values_into_their_slots(dtype: torch.dtype) -> None:
    pools = torch.zeros(2, 32, 3, 80, device=DEVICE, dtype=dtype)
    slots = torch.tensor([5, 31, 0], device=DEVICE)
    # Heads outermost in memory, as a projection leaves them.
    key = torch.randn(3, 3, 80).to(DEVICE, dtype).transpose(0, 1)
    value = torch.randn(3, 3, 80).to(DEVICE, dtype)
    with whole_bfloat16():
        write_slots(pools[0], pools[1], slots, key, value)
    assert torch.equal(pools[0][slots], key)
    assert torch.equal(pools[1][slots], value)
    pools[:, slots] = 0
    assert not pools.any()
