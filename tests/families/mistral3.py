"""Mistral 3, tiny: Pixtral's tower, patches merged by fours."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase
from tests.families.parts.names import newer_name
from tests.families.parts.pixtral import PIXTRAL_TEMPLATE, PIXTRAL_TOKENS, PIXTRAL_VISION, pixtral_files
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import build_llama_tokenizer

MERGE_SIZE = 2


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    tie: bool = False,
    layers: int | list[int] = -1,
) -> Path:
    """Writes the checkpoint.

    Args:
        tie: share the input embedding with the output layer.
        layers: layer of the tower whose rows are taken.
    """
    from transformers import Mistral3Config

    tokenizer = build_llama_tokenizer(image_token="[IMG]", more=PIXTRAL_TOKENS)
    config = Mistral3Config(
        vision_config=PIXTRAL_VISION,
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type="mistral", head_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=MERGE_SIZE,
        vision_feature_layer=layers,
        tie_word_embeddings=tie,
    )
    # Not a whole number of cells: the largest pictures are a little larger than it.
    files = pixtral_files(longest_edge=92, merge_size=MERGE_SIZE)
    return save_checkpoint(
        folder, config, tokenizer, PIXTRAL_TEMPLATE, files, seed=seed, shard_size=shard_size
    )


CASE = FamilyCase(
    "mistral3",
    build,
    encoder_names=("vision_tower.", "multi_modal_projector."),
    variants={"": {}, "tied": {"tie": True, "layers": [-2]}},
    other_names=(newer_name,),
)
