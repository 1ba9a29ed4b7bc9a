"""Tiny checkpoints with random weights, one for each family, made offline.

Each is a complete Hugging Face checkpoint (config, weights, tokenizer, chat
template, processor and generation config) that plain transformers loads too.
The weights are random but large enough that greedy answers vary with the
prompt and with the picture, so that "equal to the reference" means something.

Knows nothing about Percept: what is built here is what a user would bring.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tests.tiny_tokenizers import build_llama_tokenizer, build_qwen_tokenizer

ModelType = Literal["qwen2_vl", "qwen2_5_vl", "llava"]
TemplateStyle = Literal["parts", "strings"]

MODEL_TYPES: tuple[ModelType, ...] = ("qwen2_vl", "qwen2_5_vl", "llava")
HIDDEN_SIZE = 64
CONTEXT_LENGTH = 2048

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAVA_PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

LLAVA_STRINGS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tiny(
    model_type: ModelType,
    folder: Path,
    *,
    seed: int = 0,
    tie: bool | None = None,
    template: TemplateStyle = "parts",
    vision: Literal["clip", "siglip"] = "clip",
    text: Literal["llama", "mistral", "qwen2"] = "llama",
    shard_size: str = "5GB",
) -> Path:
    """Writes a complete tiny checkpoint into `folder` and returns it.

    Args:
        seed: of the random weights.
        tie: share the input embedding with the output layer. None: as the
            family's small members do (Qwen tied, LLaVA not).
        template: for llava, what its chat template takes as content.
        vision: for llava, its vision tower.
        text: for llava, its language model.
        shard_size: largest weights file, "50KB" for many shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model_type == "llava":
        config, tokenizer = _llava(tie=bool(tie), vision=vision, text=text)
        tokenizer.chat_template = LLAVA_PARTS_TEMPLATE if template == "parts" else LLAVA_STRINGS_TEMPLATE
        processor = _llava_processor(vision)
    else:
        config, tokenizer = _qwen(model_type, tie=tie is not False)
        tokenizer.chat_template = QWEN_TEMPLATE
        processor = _qwen_processor(model_type)
    tokenizer.save_pretrained(folder)
    _save_model(config, tokenizer, folder, seed, shard_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    return folder


def _qwen(model_type: str, *, tie: bool) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

    tokenizer = build_qwen_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config_class = Qwen2VLConfig if model_type == "qwen2_vl" else Qwen2_5_VLConfig
    config = config_class(
        text_config=_text_config(len(tokenizer), tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
        vision_config=_qwen2_vision() if model_type == "qwen2_vl" else _qwen2_5_vision(),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tie,
    )
    return config, tokenizer


def _qwen2_vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": HIDDEN_SIZE,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def _qwen2_5_vision() -> dict[str, Any]:
    return {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": HIDDEN_SIZE,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }


def _text_config(vocabulary_size: int, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llava(*, tie: bool, vision: str, text: str) -> tuple[Any, Any]:
    from transformers import LlavaConfig

    tokenizer = build_llama_tokenizer()
    # A few rows of padding beyond the tokenizer, as the hub's checkpoints have.
    text_config = _text_config(len(tokenizer) + 8, tokenizer) | {"model_type": text}
    vision_config = {
        "model_type": f"{vision}_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
        tie_word_embeddings=tie,
    )
    return config, tokenizer


def _qwen_processor(model_type: str) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor" if model_type == "qwen2_vl" else "Qwen2_5_VLProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_pixels": 56 * 56,
        "max_pixels": 168 * 168,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


def _llava_processor(vision: str) -> dict[str, Any]:
    if vision == "siglip":
        return {
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "LlavaProcessor",
            "size": {"height": 56, "width": 56},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
        }
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
    }


def _save_model(config: Any, tokenizer: Any, folder: Path, seed: int, shard_size: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomise(model, seed, quiet_ids=tokenizer.all_special_ids)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, max_shard_size=shard_size)


def randomise(model: Any, seed: int, quiet_ids: list[int]) -> None:
    """Fills all parameters; `quiet_ids` get small output logits, so that answers run on."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "ln_q" in name:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.ndim < 2:
                parameter.copy_(noise * 0.1)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(noise * 0.4)
            else:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
        model.get_output_embeddings().weight[quiet_ids] *= 0.1
