"""How many items a prompt may hold: what was set, and no more than the model takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service.service import item_limits
from llm_service.settings import LlmSettings
from shared.checkpoint import find_checkpoint
from shared.families import load_family


@pytest.mark.parametrize(
    ("model_type", "given", "limits"),
    [
        ("qwen2_vl", {}, {"image": 64, "video": 64}),
        ("qwen2_vl", {"image": 3}, {"image": 3, "video": 64}),
        ("whisper", {}, {"audio": 1}),
        ("whisper", {"audio": 5}, {"audio": 1}),
        ("whisper", {"audio": 0}, {"audio": 0}),
        ("florence2", {}, {"image": 1}),
    ],
)
def test_the_items_of_a_prompt_are_bounded(
    model_type: str, given: dict[str, int], limits: dict[str, int], tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = str(tiny_checkpoint(model_type))
    settings = LlmSettings.model_validate({"model": folder, "limit_mm_per_prompt": given})
    assert item_limits(settings, load_family(find_checkpoint(folder))) == limits
