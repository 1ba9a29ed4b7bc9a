"""Attention of towers within segments: the kernel against a loop, and the towers that call it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention

from shared.checkpoint import find_checkpoint
from shared.families import load_family, tower_attention
from shared.families.tower_attention import TOWER_ATTENTION, choose_kernel, register, use_segments
from shared.families.triton_varlen import attend_within_segments

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET", "0") == "1" else "cuda")
SEGMENTS = {"one row": [1], "windows": [16, 64, 7, 16], "pictures": [130, 33, 260], "one": [64]}


@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_a_call_per_segment(name: str, width: int, dtype: torch.dtype) -> None:
    counts = SEGMENTS[name]
    generator = torch.Generator().manual_seed(len(counts))
    # As one projection leaves them: query, key and value side by side.
    rows = torch.randn(sum(counts), 3, 2, width, generator=generator).to(DEVICE, dtype)
    query, key, value = rows.unbind(1)
    starts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
    output = attend_within_segments(query, key, value, starts, max(counts), 0.3)
    parts = [side.transpose(0, 1).double().split(counts, 1) for side in (query, key, value)]
    expected = torch.cat(
        [scaled_dot_product_attention(*part, scale=0.3) for part in zip(*parts, strict=True)], 1
    ).transpose(0, 1)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=0)


@pytest.fixture
def kernel_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Chooses our kernel on any device; yields the numbers of segments that it was called with."""
    called: list[int] = []

    def kernel(*arguments: Any) -> torch.Tensor:
        called.append(len(arguments[3]) - 1)
        return attend_within_segments(*arguments)

    monkeypatch.setattr(tower_attention, "choose_kernel", lambda device, dtype: kernel)
    yield called
    register(attend_within_segments)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_towers_call_it_once_for_a_batch(
    model_type: str,
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kernel_anywhere: list[int],
) -> None:
    family = load_family(find_checkpoint(str(tiny_checkpoint(model_type))))
    preprocessor = family.preprocessor()
    noise = np.random.default_rng(1).integers(0, 256, (84, 140, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[:56, :84]), Image.fromarray(noise[28:])]
    batch = [preprocessor.preprocess_image(picture, {}) for picture in pictures]
    output = family.tower(DEVICE, torch.float32).encode(batch)
    assert kernel_anywhere, "the tower did not call the kernel"
    assert min(kernel_anywhere) >= len(pictures)
    monkeypatch.setattr(tower_attention, "choose_kernel", lambda device, dtype: None)
    expected = family.tower(DEVICE, torch.float32).encode(batch)
    for item, reference in zip(output, expected, strict=True):
        torch.testing.assert_close(item["embeds"], reference["embeds"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_patches_as_a_product_are_the_convolution(
    model_type: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    family = load_family(find_checkpoint(str(tiny_checkpoint(model_type))))
    features = family.preprocessor().preprocess_image(Image.new("RGB", (84, 56), (9, 200, 30)), {})
    tower = family.tower(torch.device("cpu"), torch.float32)
    (expected,) = tower.encode([features])
    tower_attention.multiply_patches(tower._module)  # type: ignore[attr-defined]
    (output,) = tower.encode([features])
    torch.testing.assert_close(output["embeds"], expected["embeds"], atol=1e-5, rtol=1e-5)


def test_the_cpu_keeps_a_call_per_picture() -> None:
    config = type("Config", (), {"_attn_implementation": "sdpa"})()
    assert not use_segments(config, torch.device("cpu"), torch.float32)
    assert config._attn_implementation == "sdpa"


def test_cuda_gets_our_kernel_without_flash_attn() -> None:
    assert choose_kernel(torch.device("cuda"), torch.float32) is attend_within_segments
    assert "flash" in TOWER_ATTENTION, "transformers decides by this word"
