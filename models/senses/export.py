"""Writes the checkpoint folder of the model that sees, watches and hears, as plain transformers loads it.

Knows nothing about how the weights came to be. The spelling head stays behind.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

from models.senses import tokens
from models.senses.ears import extractor_settings
from models.senses.network import SensesLearner
from models.senses.thinker import to_thinker
from models.training.network import CONTEXT
from models.training.pixels import MAX_PIXELS, MERGE, MIN_PIXELS, NORMAL_MEAN, NORMAL_STD, PATCH

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
    thinker.generation_config = _generation_config()
    thinker.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    _write_tokenizer(folder)
    pictures = _pixels()
    both = pictures | {"image_processor_type": "Qwen2VLImageProcessor"} | extractor_settings()
    _write_json(folder / "preprocessor_config.json", both)
    _write_json(
        folder / "video_preprocessor_config.json",
        pictures | {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": True, "fps": 2},
    )


def _generation_config() -> GenerationConfig:
    ids = tokens.special_ids()
    return GenerationConfig(
        do_sample=False,
        bos_token_id=ids[tokens.END_OF_TEXT],
        eos_token_id=[ids[tokens.END], ids[tokens.END_OF_TEXT]],
        pad_token_id=ids[tokens.END_OF_TEXT],
    )


def _write_tokenizer(folder: Path) -> None:
    tokens.build_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": _PROCESSOR,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": tokens.END,
        "pad_token": tokens.END_OF_TEXT,
        "unk_token": tokens.END_OF_TEXT,
        "extra_special_tokens": tokens.NAMED,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": CONTEXT,
        "chat_template": tokens.CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(tokens.CHAT_TEMPLATE)


def _pixels() -> dict[str, Any]:
    return {
        "processor_class": _PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(NORMAL_MEAN),
        "image_std": list(NORMAL_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
