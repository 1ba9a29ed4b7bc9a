"""Writes the checkpoint folder of the polished model.

Weights are stored as float16, which halves the file; the configuration says float32, in which they are
computed with. Knows nothing about how the weights came to be.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from models.polish.network import LanguageModel, deepen, open_thinker
from models.polish.plan import Plan


def export(checkpoint: Path, plan: Plan, model: Path, folder: Path) -> None:
    """Exports a training checkpoint to a folder.

    Args:
        model: the checkpoint folder of the model that was polished, whose other files are taken over.
    """
    thinker = open_thinker(model)
    deepen(thinker, plan.behind)
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    LanguageModel(thinker).load_state_dict(state["learner"])
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.is_file() and path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder / path.name)
    # The language model's head is its embedding, which is stored once.
    weights = {
        name: weight.to(torch.float16)
        for name, weight in thinker.state_dict().items()
        if name != "lm_head.weight"
    }
    thinker.save_pretrained(folder, state_dict=weights)
    (folder / "model.safetensors").chmod(0o644)
