"""Writes a complete checkpoint folder.

Knows its files. Does not know any family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.families.parts.weights import randomise


def save_checkpoint(
    folder: Path,
    config: Any,
    tokenizer: Any,
    template: str | None,
    files: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    shard_size: str,
    auto_class: str = "AutoModelForImageTextToText",
    change: Callable[[Any], None] | None = None,
    eos_token_ids: list[int] | None = None,
) -> Path:
    """Writes config, random weights, tokenizer, chat template and the files given, and returns the folder.

    Args:
        config: the family's configuration object.
        template: Jinja text of the chat template; None: the checkpoint has none.
        files: JSON files by name: preprocessor_config.json and what else the
            processor reads (processor_config.json, video_preprocessor_config.json).
        seed: of the random weights.
        shard_size: largest weights file, "50KB" for many shards.
        auto_class: transformers' class that makes the whole model.
        change: called with the model after its weights were drawn.
        eos_token_ids: tokens that end an answer; None: the tokenizer's own.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
    randomise(model, seed, quiet_ids=tokenizer.all_special_ids)
    if change is not None:
        change(model)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos_token_ids or [tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder
