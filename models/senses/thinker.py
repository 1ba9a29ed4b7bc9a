"""From the model that sees to one that can hear: a Qwen2-VL as a Qwen2.5-Omni thinker, number for number.

Knows how weights of the one become weights of the other. Both language models are the same. The towers
differ, but the newer one can do what the older did:

- A layer norm is a root-mean-square norm where its input's mean is zero. Whatever writes into the tower's
  residual stream is therefore made to write vectors of mean zero; a layer norm does not see the
  difference. Its shift goes into the bias of the linear layer behind it.
- x sigmoid(1.702 x), the older activation, is silu(g) u with g = 1.702 x and u = 1 / 1.702.
- Of a pair of frames the tower reads the first, with the sum of the older weights for both: the same for
  a picture, which stands for both frames of its pair.
"""

from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from models.senses import tokens
from models.senses.ears import ears_config
from models.training import vocabulary
from models.training.network import CONTEXT, Sizes, build_config

_SLOPE = 1.702
STEPS_PER_SECOND = 2
"""Positions that a second of film is long."""


def thinker_config() -> Qwen2_5OmniThinkerConfig:
    """The checkpoint's configuration."""
    ids = tokens.special_ids()
    known = vocabulary.special_ids(vocabulary.build_tokenizer())
    seen = build_config(Sizes(depth=Sizes.depth + 1), known)
    vision, text = seen.vision_config, seen.text_config.to_dict()
    text.pop("model_type")
    text |= {
        "vocab_size": tokens.SIZE,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": ids[tokens.END_OF_TEXT],
        "eos_token_id": ids[tokens.END],
        "pad_token_id": ids[tokens.END_OF_TEXT],
    }
    return Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config={
            "depth": vision.depth,
            "hidden_size": vision.embed_dim,
            "hidden_act": "silu",
            "intermediate_size": vision.embed_dim * vision.mlp_ratio,
            "num_heads": vision.num_heads,
            "in_channels": 3,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "window_size": vision.patch_size * vision.spatial_merge_size * 16,
            "fullatt_block_indexes": list(range(vision.depth)),
            "out_hidden_size": vision.hidden_size,
        },
        audio_config=ears_config().to_dict(),
        image_token_index=ids[tokens.IMAGE],
        video_token_index=ids[tokens.VIDEO],
        audio_token_index=ids[tokens.AUDIO],
        vision_start_token_id=ids[tokens.VISION_START],
        vision_end_token_id=ids[tokens.VISION_END],
        audio_start_token_id=ids[tokens.AUDIO_START],
        audio_end_token_id=ids[tokens.AUDIO_END],
        user_token_id=ids[tokens.START],
        position_id_per_seconds=STEPS_PER_SECOND,
        seconds_per_chunk=2,
        tie_word_embeddings=True,
    )


@torch.no_grad()
def to_thinker(model: Any, ears: Any) -> Any:
    """The thinker that answers as `model` (a `Qwen2VLForConditionalGeneration`) and hears with `ears`."""
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config()).eval()
    _convert_tower(model.model.visual, thinker.model.visual)
    thinker.model.language_model.load_state_dict(model.model.language_model.state_dict())
    thinker.model.audio_tower.load_state_dict(ears.state_dict())
    return thinker


def _convert_tower(old: Any, new: Any) -> None:
    kernel = old.patch_embed.proj.weight
    new.patch_embed.proj.weight.zero_()
    new.patch_embed.proj.weight[:, :, 0] = _centred(kernel.sum(2))
    for before, after in zip(old.blocks, new.blocks, strict=True):
        _convert_attention(before, after)
        _convert_feed_forward(before, after)
    new.merger.ln_q.weight.copy_(old.merger.ln_q.weight)
    first = old.merger.mlp[0]
    shifts = old.merger.ln_q.bias.repeat(first.in_features // old.merger.ln_q.bias.numel())
    _fill(new.merger.mlp[0], first.weight, first.bias + first.weight @ shifts)
    new.merger.mlp[2].load_state_dict(old.merger.mlp[2].state_dict())


def _convert_attention(old: Any, new: Any) -> None:
    new.norm1.weight.copy_(old.norm1.weight)
    packed = old.attn.qkv
    bias = packed.bias + packed.weight @ old.norm1.bias
    for layer, weight, shift in zip(
        (new.attn.q, new.attn.k, new.attn.v), packed.weight.chunk(3), bias.chunk(3), strict=True
    ):
        _fill(layer, weight, shift)
    _fill(new.attn.proj, _centred(old.attn.proj.weight), _centred(old.attn.proj.bias))


def _convert_feed_forward(old: Any, new: Any) -> None:
    new.norm2.weight.copy_(old.norm2.weight)
    widen, narrow = old.mlp.fc1, old.mlp.fc2
    _fill(new.mlp.gate_proj, _SLOPE * widen.weight, _SLOPE * (widen.bias + widen.weight @ old.norm2.bias))
    new.mlp.up_proj.weight.zero_()
    new.mlp.up_proj.bias.fill_(1 / _SLOPE)
    _fill(new.mlp.down_proj, _centred(narrow.weight), _centred(narrow.bias))


def _centred(written: torch.Tensor) -> torch.Tensor:
    """What writes the same into a residual stream, but for the mean."""
    return written - written.mean(0, keepdim=True)


def _fill(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
