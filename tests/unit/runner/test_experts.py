"""Which models may be recorded as CUDA graphs: those that send tokens to experts may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_service.runner.attention.registration import ATTENTION_NAME, register_attention
from llm_service.runner.load import has_experts
from shared.checkpoint import read_checkpoint
from shared.families import load_family


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("aria", True), ("qwen3_vl_moe", True), ("qwen2_vl", False), ("gemma3", False)],
)
def test_experts_are_seen(model_type: str, expected: bool, tiny_checkpoint: Callable[[str], Path]) -> None:
    register_attention()
    family = load_family(read_checkpoint(tiny_checkpoint(model_type)))
    model = family.language_model(torch.device("cpu"), torch.float32, ATTENTION_NAME)
    assert has_experts(model) is expected
