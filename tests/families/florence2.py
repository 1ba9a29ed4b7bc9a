"""Florence-2, tiny: DaViT over 64 pixels, BART's encoder and decoder, all tokens of places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.families.florence2_original import ADDED_TOKENS
from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE
from tests.tiny_tokenizers import build_qwen_tokenizer

MARKS = ("<s>", "<|endoftext|>", "</s>", "<unk>", "<mask>")
PLACES = tuple(f"<loc_{place}>" for place in range(1000))
SIDE, ROW_COUNT = 64, 5
POSITIONS, RUN_LENGTH = 512, 3
LEFT_OUT = ["it", "the image"]
KINDS = (
    "ocr",
    "phrase_grounding",
    "pure_text",
    "description_with_bboxes",
    "description_with_polygons",
    "polygons",
    "bboxes",
    "description_with_bboxes_or_polygons",
)
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
        special_tokens=(*MARKS, *ADDED_TOKENS), end="</s>", named={"image_token": "<image>"}
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
            "max_position_embeddings": POSITIONS,
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
        None,
        {
            # As the hub's: beams, which Percept does not search.
            "generation_config.json": {
                "bos_token_id": tokenizer.bos_token_id,
                "decoder_start_token_id": tokenizer.eos_token_id,
                "early_stopping": True,
                "eos_token_id": tokenizer.eos_token_id,
                "forced_bos_token_id": tokenizer.bos_token_id,
                "forced_eos_token_id": tokenizer.eos_token_id,
                "no_repeat_ngram_size": RUN_LENGTH,
                "num_beams": 3,
                "pad_token_id": tokenizer.pad_token_id,
            },
            "processor_config.json": {
                "processor_class": "Florence2Processor",
                "post_processor_config": {"phrase_grounding": {"banned_grounding_tokens": LEFT_OUT}},
            },
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
        change=let_context_count,
    )


def let_context_count(model: Any) -> None:
    """Lets a token follow from what was said and where, and from the front: not from itself alone."""
    import torch

    with torch.no_grad():
        decoder = model.model.language_model.decoder
        decoder.embed_positions.weight *= 4
        for layer in decoder.layers:
            layer.self_attn.q_proj.weight *= 4
            layer.encoder_attn.q_proj.weight *= 4
            layer.self_attn.out_proj.weight *= 4
            layer.fc2.weight *= 8


def load_processor(folder: Path) -> Any:
    """The checkpoint's own, which takes the last message of a conversation as Percept does for Florence-2."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, Florence2Processor

    config: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    config["phrase_grounding"]["banned_grounding_tokens"] = LEFT_OUT
    pixels, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    processor = Florence2Processor(pixels, tokenizer, post_processor_config=config)
    processor.apply_chat_template = render
    return processor


def render(messages: list[dict[str, Any]], **_: Any) -> str:
    """The last user message's text."""
    content = [message["content"] for message in messages if message["role"] == "user"][-1]
    if isinstance(content, str):
        return content.strip()
    return " ".join(part["text"] for part in content if part["type"] == "text").strip()


def make_inputs(
    processor: Any, text: str, pictures: list[Any], videos: list[Any], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The processor's own, as `read_ids`; and as `input_ids` all that Percept puts into one row of tokens."""
    import torch

    said = text.replace("<image>", "").strip()
    inputs = dict(processor(text=[said], images=pictures, return_tensors="pt", **arguments))
    tokenizer, ids = processor.tokenizer, inputs["input_ids"]
    padding = [tokenizer.pad_token_id] * (-ids.shape[1] % 32)
    behind = torch.tensor([[*padding, tokenizer.eos_token_id, tokenizer.bos_token_id]])
    return inputs | {"read_ids": ids, "input_ids": torch.cat([ids, behind], dim=1)}


def generate(model: Any, inputs: Mapping[str, Any], count: int) -> list[int]:
    """`count` greedy tokens behind the two that every answer begins with."""
    output = model.generate(
        input_ids=inputs["read_ids"],
        pixel_values=inputs["pixel_values"],
        max_new_tokens=count + 1,
        min_new_tokens=count + 1,
        do_sample=False,
        num_beams=1,
        early_stopping=False,
    )
    return [int(token) for token in output[0, 2:]]


CASE = FamilyCase(
    "florence2",
    build,
    encoder_names=("model.vision_tower.", "model.multi_modal_projector."),
    buffer_ends=(".pos_idx_to_embed",),
    takes_text_alone=False,
    most_pictures=1,
    spans_may_be_cut=False,
    follow_ups_share=False,
    chunk=384,
    oracle=OracleOverrides(
        auto_class="Florence2ForConditionalGeneration",
        load_processor=load_processor,
        make_inputs=make_inputs,
        generate=generate,
    ),
)
