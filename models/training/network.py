"""The model: a small Qwen2-VL, a quick forward pass for training, and the heads that teach its tower.

The modules are transformers' own, so what is trained is what plain transformers loads. The forward pass
here differs from transformers' only in batching pictures of several grids as one padded tensor (a test
holds the two together). The extra heads say what every cell shows; they are dropped on export.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLVisionBlock,
    apply_rotary_pos_emb_vision,
)

from models.training import vocabulary
from models.training.examples import IGNORED, Batch
from models.training.pixels import INKS, KINDS, MERGE, PATCH

CONTEXT = 2048
_SEEN_WEIGHT = 0.5


@dataclass(frozen=True)
class Sizes:
    """The widths and depths of tower and language model."""

    tower_width: int = 192
    tower_depth: int = 4
    tower_heads: int = 4
    tower_ratio: int = 3
    width: int = 192
    depth: int = 4
    heads: int = 4
    key_heads: int = 2
    inner: int = 512


def build_config(sizes: Sizes, ids: dict[str, int]) -> Qwen2VLConfig:
    """The checkpoint's config.json; `ids` are the special tokens' numbers."""
    head = sizes.width // sizes.heads
    sections = [head // 8, 3 * head // 16, 3 * head // 16]
    return Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary.SIZE,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.depth,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.key_heads,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": sections},
            "bos_token_id": ids[vocabulary.END_OF_TEXT],
            "eos_token_id": ids[vocabulary.END],
            "pad_token_id": ids[vocabulary.END_OF_TEXT],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": sizes.tower_depth,
            "embed_dim": sizes.tower_width,
            "num_heads": sizes.tower_heads,
            "mlp_ratio": sizes.tower_ratio,
            "hidden_size": sizes.width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        image_token_id=ids[vocabulary.IMAGE],
        video_token_id=ids[vocabulary.VIDEO],
        vision_start_token_id=ids[vocabulary.VISION_START],
        vision_end_token_id=ids[vocabulary.VISION_END],
        tie_word_embeddings=True,
    )


def new_config() -> Qwen2VLConfig:
    return build_config(Sizes(), vocabulary.special_ids(vocabulary.build_tokenizer()))


class Learner(nn.Module):
    """The model with its teaching heads."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.model = Qwen2VLForConditionalGeneration(config)
        self.model.set_attn_implementation("eager")
        width = config.text_config.hidden_size
        self.seen = nn.Linear(width, KINDS + INKS + 1 + 2)
        self.tower_learns = True

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The answers' loss and the cells' loss, each a mean; no cells' loss once the tower is frozen."""
        with torch.set_grad_enabled(self.tower_learns):
            cells = encode_pictures(self.model.model.visual, Batch(**batch))
        logits = answer_logits(self.model, cells, Batch(**batch))
        spoken = F.cross_entropy(
            logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORED
        )
        if not self.tower_learns:
            return spoken, torch.zeros(())
        return spoken, self._seen_loss(cells, batch) * _SEEN_WEIGHT

    def freeze_tower(self) -> None:
        """From now on only the language model learns."""
        self.tower_learns = False
        self.model.model.visual.requires_grad_(False)
        self.seen.requires_grad_(False)

    def _seen_loss(self, cells: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        kind, ink, centre, place = self.seen(cells).float().split((KINDS, INKS, 1, 2), dim=-1)
        real = (batch["kind"] != IGNORED).float()
        shown = (batch["kind"] > 0).float()
        off = F.binary_cross_entropy_with_logits(centre.squeeze(-1), batch["centre"], reduction="none")
        away = (place - batch["place"]).abs().sum(-1)
        loss: torch.Tensor = (
            F.cross_entropy(kind.flatten(0, 1), batch["kind"].flatten(), ignore_index=IGNORED)
            + F.cross_entropy(ink.flatten(0, 1), batch["colour"].flatten(), ignore_index=IGNORED)
            + (off * real).sum() / real.sum() * 2
            + (away * shown).sum() / shown.sum() * 2
        )
        return loss


def encode_pictures(tower: Qwen2VisionTransformerPretrainedModel, batch: Batch) -> torch.Tensor:
    """Embeddings of every cell: (pictures, MOST_CELLS, width)."""
    pictures, patches, _ = batch.patches.shape
    pixels = batch.patches.float() / 127.5 - 1.0
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
    hidden = F.linear(pixels, kernel)
    cosine, sine = tower.rotary_pos_emb(hidden, batch.coordinates.flatten(0, 1))
    turns = cosine.view(pictures, patches, -1), sine.view(pictures, patches, -1)
    visible = batch.visible[:, None, None, :]
    for block in tower.blocks:
        hidden = _tower_block(block, hidden, turns, visible)
    merged: torch.Tensor = tower.merger(hidden)
    return merged.view(pictures, patches // MERGE**2, -1)


def _tower_block(
    block: Qwen2VLVisionBlock,
    hidden: torch.Tensor,
    turns: tuple[torch.Tensor, torch.Tensor],
    visible: torch.Tensor,
) -> torch.Tensor:
    attention = block.attn
    pictures, patches, width = hidden.shape
    packed = attention.qkv(block.norm1(hidden)).view(pictures, patches, 3, attention.num_heads, -1)
    query, key, value = packed.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *turns)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    scores = query @ key.transpose(2, 3) * attention.scaling
    weights = scores.float().masked_fill(~visible, float("-inf")).softmax(-1).to(value.dtype)
    hidden = hidden + attention.proj((weights @ value).transpose(1, 2).reshape(pictures, patches, width))
    result: torch.Tensor = hidden + block.mlp(block.norm2(hidden))
    return result


def answer_logits(model: Qwen2VLForConditionalGeneration, cells: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Next-token logits at every token."""
    language = model.model.language_model
    words: torch.Tensor = language.embed_tokens(batch.tokens)
    pictured = cells.flatten(0, 1)[batch.rows.clamp(min=0)]
    hidden = torch.where((batch.rows >= 0)[..., None], pictured.to(words.dtype), words)
    turns = language.rotary_emb(hidden, batch.positions)
    length = hidden.shape[1]
    later = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    for layer in language.layers:
        hidden = layer(hidden, attention_mask=later, position_embeddings=turns)
    logits: torch.Tensor = model.lm_head(language.norm(hidden))
    return logits
