"""Florence-2, tiny: DaViT over 64 pixels, BART's encoder and decoder, all tokens of places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import CONTEXT_LENGTH, HIDDEN_SIZE
from tests.tiny_tokenizers import build_qwen_tokenizer

MARKS = ("<s>", "<|endoftext|>", "</s>", "<unk>", "<mask>")
PLACES = tuple(f"<loc_{place}>" for place in range(1000))
SHAPES = tuple(f"<{end}{kind}>" for kind in ("od", "ocr", "ground", "obj", "poly") for end in ("", "/"))
SIDE, ROW_COUNT = 64, 5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def build(
    folder: Path, *, seed: int = 0, shard_size: str = "5GB", text: Mapping[str, Any] | None = None
) -> Path:
    """Writes the checkpoint.

    Args:
        text: further fields of the text model's configuration.
    """
    from transformers import Florence2Config

    tokenizer = build_qwen_tokenizer(
        special_tokens=(*MARKS, *PLACES, *SHAPES, "<sep>"), end="</s>", named={"image_token": "<image>"}
    )
    tokenizer.bos_token = "<s>"
    config = Florence2Config(
        vision_config={
            "depths": [1, 1, 2, 1],
            "embed_dim": [16, 16, 32, 48],
            "num_heads": [2, 2, 2, 4],
            "num_groups": [2, 2, 4, 4],
            "window_size": 3,
            "projection_dim": HIDDEN_SIZE,
            "max_temporal_embeddings": 4,
            "max_position_embeddings": 8,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer) + 8,
            "d_model": HIDDEN_SIZE,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
        }
        | dict(text or {}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        "",
        {
            "preprocessor_config.json": {
                "image_processor_type": "CLIPImageProcessor",
                "processor_class": "Florence2Processor",
                "crop_size": {"height": SIDE, "width": SIDE},
                "do_center_crop": False,
                "do_convert_rgb": None,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": MEAN,
                "image_std": STD,
                "image_seq_length": ROW_COUNT,
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"height": SIDE, "width": SIDE},
            },
        },
        seed=seed,
        shard_size=shard_size,
    )
