"""How the CUDA backend calls its kernel, with the kernel's documented meaning written out in torch.

The kernel itself needs a GPU. What is checked here is that the arguments mean
the same attention as the reference backend's.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.unit.runner.test_attention import PARTS, Scene


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    block_table: torch.Tensor,
) -> torch.Tensor:
    """Attention per sequence over blocks; the causal mask is aligned to the end of the keys."""
    assert causal
    assert all(each.dtype == torch.int32 for each in (cu_seqlens_q, cu_seqlens_k, block_table))
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    outputs = []
    for index, table in enumerate(block_table):
        queries = q[cu_seqlens_q[index] : cu_seqlens_q[index + 1]]
        length = int(cu_seqlens_k[index + 1] - cu_seqlens_k[index])
        keys, values = (side[table.long()].flatten(0, 1)[:length] for side in (k, v))
        distance = torch.arange(length) - (torch.arange(len(queries))[:, None] + length - len(queries))
        seen = distance <= 0 if window_size[0] < 0 else (distance <= 0) & (distance >= -window_size[0])
        outputs.append(_attend(queries, keys, values, seen, softmax_scale))
    return torch.cat(outputs)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, scale: float | None
) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        *(side.transpose(0, 1)[None] for side in (queries, keys, values)),
        attn_mask=seen,
        scale=scale,
        enable_gqa=True,
    )[0].transpose(0, 1)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend's module, imported over the stand-in for the kernel's package."""
    package = ModuleType("flash_attn")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    yield importlib.import_module("llm_service.runner.attention.flash")
    sys.modules.pop("llm_service.runner.attention.flash", None)


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("name", PARTS)
def test_arguments_mean_the_same_attention(flash: Any, name: str, window: int | None) -> None:
    scene = Scene(PARTS[name], 6, 2, torch.float32)
    step = flash.FlashBackend().plan(scene.cache, scene.shape)
    unused = torch.empty(0)
    output = step.attend(0, scene.query, unused, unused, None, window)
    torch.testing.assert_close(output.double(), scene.expected(window=window), atol=2e-5, rtol=0)


def test_chosen_on_cuda_where_it_can_serve(flash: Any) -> None:
    from llm_service.runner.attention import choose_backend

    cuda = torch.device("cuda")
    assert choose_backend(cuda, torch.bfloat16, 256).name == "flash_attn"
    assert choose_backend(cuda, torch.bfloat16, 16).name == "triton"
    assert choose_backend(cuda, torch.float32, 256).name == "triton"


def test_the_reference_serves_cuda_where_there_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_service.runner.attention import choose_backend

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend(torch.device("cuda"), torch.bfloat16, 16).name == "sdpa"
