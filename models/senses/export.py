"""Writes the checkpoint folder of the model that sees, watches and hears, as plain transformers loads it.

Knows nothing about how the weights came to be. The spelling head stays behind.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLForConditionalGeneration

from models.senses import tokens
from models.senses.ears import extractor_settings
from models.senses.network import SensesLearner
from models.senses.thinker import to_thinker
from models.training.export import (
    FILMS,
    PICTURES,
    generation_config,
    pixel_settings,
    write_json,
    write_tokenizer,
)

_PROCESSOR = "Qwen2_5OmniProcessor"


def export(checkpoint: Path, seeing: Path, folder: Path) -> None:
    """Exports a training checkpoint to a folder.

    Args:
        seeing: the checkpoint folder of the model that sees, from which training began.
    """
    learner = SensesLearner(Qwen2VLForConditionalGeneration.from_pretrained(seeing, dtype=torch.float32))
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    learner.load_state_dict(state["learner"])
    folder.mkdir(parents=True, exist_ok=True)
    thinker = to_thinker(learner.model, learner.ears)
    thinker.generation_config = generation_config()
    thinker.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    write_tokenizer(folder, tokens.build_tokenizer(), tokens.CHAT_TEMPLATE, _PROCESSOR, tokens.NAMED)
    pixels = pixel_settings(_PROCESSOR)
    write_json(folder / "preprocessor_config.json", pixels | PICTURES | extractor_settings())
    write_json(
        folder / "video_preprocessor_config.json", pixels | FILMS | {"do_sample_frames": True, "fps": 2}
    )
