"""Florence-2 as its authors published it: configuration, names of tensors, tokens that their processor adds.

`model_type` is the same as in transformers' own layout; the tower's configuration tells them
apart. The correspondence is that of transformers' conversion script
(convert_florence2_original_pytorch_to_hf.py). Knows names. Does not know what is computed with
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint

if TYPE_CHECKING:
    import torch

    from shared.families.weights import Prefixes

PREFIXES: Prefixes = {
    "vision_tower.": ("encoder", "tower."),
    # Parts of a classifier that nothing uses.
    "vision_tower.head.": ("neither", ""),
    "vision_tower.norms.": ("neither", ""),
    "image_projection": ("encoder", "projector.image_projection.weight"),
    "image_proj_norm.": ("encoder", "projector.image_proj_norm."),
    "image_pos_embed.": ("encoder", "projector.image_position_embed."),
    "visual_temporal_embed.": ("encoder", "projector.visual_temporal_embed."),
    "language_model.model.": ("language", "model."),
    "language_model.model.encoder.embed_tokens.": ("neither", ""),
    "language_model.model.decoder.embed_tokens.": ("neither", ""),
    "language_model.lm_head.": ("language", "lm_head."),
    # All zeros, as BART has it.
    "language_model.final_logits_bias": ("neither", ""),
}

_KINDS = ("weight", "bias")
_STAGES = 8

RENAMED: Mapping[str, str] = {
    f"{old}.{kind}": f"{new}.{kind}"
    for kind in _KINDS
    for old, new in (
        *((f".convs.{stage}.proj", f".convs.{stage}.conv") for stage in range(_STAGES)),
        (".conv1.fn.dw", ".conv1"),
        (".conv2.fn.dw", ".conv2"),
        (".window_attn.norm", ".norm1"),
        (".channel_attn.norm", ".norm1"),
        (".window_attn.fn.qkv", ".window_attn.qkv"),
        (".window_attn.fn.proj", ".window_attn.proj"),
        (".channel_attn.fn.qkv", ".channel_attn.qkv"),
        (".channel_attn.fn.proj", ".channel_attn.proj"),
        (".ffn.norm", ".norm2"),
        (".ffn.fn.net.fc1", ".ffn.fc1"),
        (".ffn.fn.net.fc2", ".ffn.fc2"),
    )
}
"""Ends of tensors' names, and those of transformers' own classes."""

TRANSPOSED = ".image_projection.weight"
"""End of the name, in transformers' words, of the matrix that lies the other way round."""

ADDED_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{place}>" for place in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>"),
    *("<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>"),
    *("<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>"),
    *("<poly>", "</poly>", "<and>"),
)
"""Special tokens behind BART's vocabulary, in order; the checkpoint's tokenizer lacks them."""

LEFT_OUT = (
    *("it", "I", "me", "mine", "you", "your", "yours", "he", "him", "his", "she", "her", "hers", "they"),
    *("them", "their", "theirs", "one", "oneself", "we", "us", "our", "ours", "its", "this", "that"),
    *("these", "those", "who", "whom", "whose", "which", "what", "all", "another", "any", "anybody"),
    *("anyone", "anything", "each", "everybody", "everyone", "everything", "few", "many", "nobody"),
    *("none", "several", "some", "somebody", "someone", "something", "each other", "one another"),
    *("myself", "yourself", "himself", "herself", "itself", "ourselves", "yourselves", "themselves"),
    *("the image", "image", "images", "the", "a", "an", "a group", "other objects", "lots", "a set"),
)
"""What grounding passes over, by the authors' processor."""

_SOURCES = ["spatial_avg_pool", "temporal_avg_pool"]

_VISION_FIELDS = (
    "depths",
    "num_groups",
    "num_heads",
    "patch_padding",
    "patch_prenorm",
    "patch_size",
    "patch_stride",
    "projection_dim",
    "window_size",
)

_TEXT_FIELDS = (
    "activation_function",
    "bos_token_id",
    "d_model",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "decoder_layers",
    "decoder_start_token_id",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_layers",
    "eos_token_id",
    "max_position_embeddings",
    "pad_token_id",
    "scale_embedding",
    "vocab_size",
)


def is_original(checkpoint: Checkpoint) -> bool:
    """Says whether a checkpoint is in this layout."""
    vision = checkpoint.config.get("vision_config")
    return isinstance(vision, dict) and "dim_embed" in vision


def native_config(checkpoint: Checkpoint) -> Any:
    """A fresh transformers configuration of a checkpoint in this layout.

    A picture's token is the one behind the vocabulary.

    Raises:
        InvalidRequestError: config.json does not describe such a model.
    """
    from transformers import Florence2Config

    file = checkpoint.folder / "config.json"
    try:
        vision, text = checkpoint.config["vision_config"], checkpoint.config["text_config"]
        if vision.get("image_feature_source", _SOURCES) != _SOURCES:
            raise ValueError(f"image_feature_source is not {_SOURCES}")
        return Florence2Config(
            vision_config={
                **{name: vision[name] for name in _VISION_FIELDS if name in vision},
                "embed_dim": vision["dim_embed"],
                "max_position_embeddings": vision["image_pos_embed"]["max_pos_embeddings"],
                "max_temporal_embeddings": vision["visual_temporal_embedding"]["max_temporal_embeddings"],
            },
            text_config={
                "model_type": "bart",
                **{name: text[name] for name in _TEXT_FIELDS if name in text},
            },
            image_token_id=text["vocab_size"],
        )
    # As in `model_config`: wrong fields come as errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequestError(f"{file} is not valid: {type(error).__name__}: {reason}") from error


def turned(value: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
    """The matrix at `TRANSPOSED` as transformers has it; see `load_half`."""
    return value.T if value.ndim == len(wanted) == 2 else value
