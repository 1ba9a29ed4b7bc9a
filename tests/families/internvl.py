"""InternVL, tiny: pictures in tiles of 28 pixels, and videos of one tile a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.names import newer_name
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_qwen_tokenizer

SIDE = 28
PATCH_SIZE = 7
MERGE = 2
MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    text_model: str = "qwen2",
    tie: bool = True,
    most_tiles: int = 6,
    **vision: Any,
) -> Path:
    """Writes the checkpoint.

    Args:
        text_model: model_type of the language model.
        tie: share the input embedding with the output layer.
        most_tiles: of a picture, without the copy of the whole.
        vision: further fields of the tower's configuration.
    """
    from transformers import InternVLConfig

    tokenizer = build_qwen_tokenizer()
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        extra_special_tokens=MARKS,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    config = InternVLConfig(
        vision_config=vision_config() | vision,
        text_config=text_config(
            len(tokenizer) + 8, tokenizer, model_type=text_model, tie_word_embeddings=tie
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(MARKS["context_image_token"]),
        image_seq_length=row_count(),
        downsample_ratio=1 / MERGE,
        tie_word_embeddings=tie,
    )
    pixels = {
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "processor_class": "InternVLProcessor",
    }
    files = {
        # The hub's files say no to cropping; the processor's own default goes before that.
        "preprocessor_config.json": pixels
        | {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": most_tiles,
        },
        "video_preprocessor_config.json": pixels | {"video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": {
            "processor_class": "InternVLProcessor",
            "image_seq_length": row_count(),
        },
    }
    return save_checkpoint(folder, config, tokenizer, TEMPLATE, files, seed=seed, shard_size=shard_size)


def row_count() -> int:
    """Rows of a tile."""
    return (SIDE // PATCH_SIZE // MERGE) ** 2


def vision_config() -> dict[str, Any]:
    """The tower's configuration."""
    return {
        "model_type": "internvl_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_bias": True,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH_SIZE, PATCH_SIZE],
    }


CASE = FamilyCase(
    "internvl",
    build,
    encoder_names=("vision_tower.", "multi_modal_projector."),
    variants={
        "": {},
        # The towers of the largest checkpoints, and InternVL2's language model.
        "large": {
            "text_model": "llama",
            "tie": False,
            "most_tiles": 12,
            "use_qk_norm": True,
            "norm_type": "rms_norm",
            "attention_bias": False,
            "use_mean_pooling": False,
        },
        "qwen3": {"text_model": "qwen3"},
    },
    other_names=(newer_name,),
)
