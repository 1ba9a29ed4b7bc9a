"""Writes a checkpoint folder that plain transformers loads: weights, configurations, tokenizer, template.

Knows nothing about how the weights came to be. The teaching heads stay behind.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

from models.training import vocabulary
from models.training.network import CONTEXT, new_config
from models.training.pixels import MAX_PIXELS, MERGE, MIN_PIXELS, NORMAL_MEAN, NORMAL_STD, PATCH

PICTURES = {"image_processor_type": "Qwen2VLImageProcessor"}
FILMS = {"video_processor_type": "Qwen2VLVideoProcessor"}
_PROCESSOR = "Qwen2VLProcessor"
_HEADS = "seen."
_MODEL = "model."


def export(checkpoint: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Exports a training checkpoint to a folder."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    model = Qwen2VLForConditionalGeneration(new_config())
    weights = {
        name.removeprefix(_MODEL): weight
        for name, weight in state["learner"].items()
        if not name.startswith(_HEADS)
    }
    model.load_state_dict(weights)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = generation_config()
    model.to(dtype).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    write_processing(folder)


def write_processing(folder: Path) -> None:
    """Writes what a folder has beside configuration and weights: tokenizer, template, processors."""
    write_tokenizer(
        folder, vocabulary.build_tokenizer(), vocabulary.CHAT_TEMPLATE, _PROCESSOR, list(vocabulary.SPECIAL)
    )
    pixels = pixel_settings(_PROCESSOR)
    write_json(folder / "preprocessor_config.json", PICTURES | pixels)
    write_json(folder / "video_preprocessor_config.json", pixels | FILMS)


def generation_config() -> GenerationConfig:
    """Greedy answers that end where a message ends."""
    ids = vocabulary.special_ids(vocabulary.build_tokenizer())
    return GenerationConfig(
        do_sample=False,
        bos_token_id=ids[vocabulary.END_OF_TEXT],
        eos_token_id=[ids[vocabulary.END], ids[vocabulary.END_OF_TEXT]],
        pad_token_id=ids[vocabulary.END_OF_TEXT],
    )


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, template: str, processor: str, special: list[str] | dict[str, str]
) -> None:
    """Writes a tokenizer with its settings and the chat template.

    Args:
        processor: the class that the checkpoint's processor has in transformers.
        special: further special tokens, by the names that the processor looks for where it does.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": processor,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": vocabulary.END,
        "pad_token": vocabulary.END_OF_TEXT,
        "unk_token": vocabulary.END_OF_TEXT,
        "extra_special_tokens": special,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": CONTEXT,
        "chat_template": template,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(template)


def pixel_settings(processor: str) -> dict[str, Any]:
    """What is said of pixels, of pictures and of films alike."""
    return {
        "processor_class": processor,
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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a settings file."""
    path.write_text(json.dumps(value, indent=2) + "\n")
