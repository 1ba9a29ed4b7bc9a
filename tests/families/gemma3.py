"""Gemma 3, tiny: a SigLIP tower whose patches are pooled, windows on two of three layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase
from tests.families.parts.pixels import HALF
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_gemma_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

IMAGE_SIZE = 56
PATCH_SIZE = 7
ROWS = 16


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Writes the checkpoint."""
    from transformers import Gemma3Config

    tokenizer = build_gemma_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config=text_config(len(tokenizer) + 8, tokenizer)
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
        mm_tokens_per_image=ROWS,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": _image_processor(),
            "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": ROWS},
        },
        seed=seed,
        shard_size=shard_size,
        change=_quieten_embeddings,
    )


def _quieten_embeddings(model: Any) -> None:
    """Input embeddings are multiplied by the root of the width: the layers would have nothing to say."""
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.15)


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 2,
    }


CASE = FamilyCase(
    model_type="gemma3",
    build=build,
    encoder_names=("vision_tower.", "multi_modal_projector."),
    spans_may_be_cut=False,
    chunk=24,
)
