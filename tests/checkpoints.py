"""Tiny checkpoints with random weights, one for each family, made offline.

Each is a complete Hugging Face checkpoint (config, weights, tokenizer, chat
template, processor and generation config) that plain transformers loads too.
The weights are random but large enough that greedy answers vary with the
prompt and with the picture, so that "equal to the reference" means something.

Knows nothing about Percept: what is built here is what a user would bring. The
builders are in `tests/families`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import all_cases

MODEL_TYPES: tuple[str, ...] = ("qwen2_vl", "qwen2_5_vl", "llava")
"""Families that stand for their kinds where running all of them would prove no more."""


def build_tiny(
    model_type: str, folder: Path, *, seed: int = 0, shard_size: str = "5GB", **options: Any
) -> Path:
    """Writes a complete tiny checkpoint into `folder` and returns it.

    Args:
        seed: of the random weights.
        shard_size: largest weights file, "50KB" for many shards.
        options: the family's own, see its module in `tests/families`.
    """
    return all_cases()[model_type].build(folder, seed=seed, shard_size=shard_size, **options)
