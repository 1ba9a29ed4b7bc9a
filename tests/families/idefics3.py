"""Idefics3, tiny: pictures are split into tiles of 56 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}"
    "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TILE = 56
MARKS = (
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<|begin_of_text|>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 4)),
)


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import Idefics3Config

    tokenizer = build_llama_tokenizer(more=MARKS)
    config = Idefics3Config(**common_config(tokenizer, "idefics3_vision"))
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": image_processor("Idefics3"),
            "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        },
        seed=seed,
        shard_size=shard_size,
    )


def common_config(tokenizer: Any, vision: str) -> dict[str, Any]:
    """What Idefics3 and SmolVLM configure."""
    return {
        "text_config": text_config(len(tokenizer), tokenizer, model_type="llama"),
        "vision_config": {
            "model_type": vision,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 14,
        },
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": False,
    }


def image_processor(name: str) -> dict[str, Any]:
    """The image processor's file."""
    return {
        "image_processor_type": f"{name}ImageProcessor",
        "processor_class": f"{name}Processor",
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_pad": True,
        "image_mean": HALF,
        "image_std": HALF,
        "max_image_size": {"longest_edge": TILE},
        "size": {"longest_edge": 2 * TILE},
        "resample": 1,
    }


CASE = FamilyCase("idefics3", build, encoder_names=("model.vision_model.", "model.connector."))
