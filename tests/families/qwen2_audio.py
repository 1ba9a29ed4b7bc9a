"""Qwen2-Audio, tiny: recordings of up to four seconds in 40 bands, the hub's template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.names import newer_name
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import text_config
from tests.tiny_tokenizers import QWEN_SPECIAL_TOKENS, build_qwen_tokenizer

TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if 'audio' in content or 'audio_url' in content or content['type'] == 'audio' %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "Audio {{ audio_count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SOUND_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
SECONDS, BANDS = 4, 40


def build(
    folder: Path, *, seed: int = 0, shard_size: str = "5GB", text: Mapping[str, Any] | None = None
) -> Path:
    """Writes the checkpoint.

    Args:
        text: further fields of the text model's configuration.
    """
    from transformers import Qwen2AudioConfig

    tokenizer = build_qwen_tokenizer(special_tokens=(*QWEN_SPECIAL_TOKENS, *SOUND_TOKENS))
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": BANDS,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "max_source_positions": SECONDS * 50,
        },
        text_config=text_config(len(tokenizer) + 8, tokenizer, model_type="qwen2", **(text or {})),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "processor_class": "Qwen2AudioProcessor",
                "feature_size": BANDS,
                "sampling_rate": 16000,
                "hop_length": 160,
                "n_fft": 400,
                "chunk_length": SECONDS,
                "n_samples": SECONDS * 16000,
                "nb_max_frames": SECONDS * 100,
                "padding_side": "right",
                "padding_value": 0.0,
                "return_attention_mask": True,
            },
        },
        seed=seed,
        shard_size=shard_size,
        auto_class="AutoModelForMultimodalLM",
    )


def audio_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Rows of each recording, as the model's forward composes them."""
    import torch

    lengths = inputs["feature_attention_mask"].sum(-1)
    tower = model.model.audio_tower
    before, after = tower._get_feat_extract_output_lengths(lengths)
    positions = torch.arange(tower.max_source_positions)
    shown = positions[None] < before[:, None]
    mask = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)[:, None, None]
    hidden = tower(inputs["input_features"], attention_mask=mask).last_hidden_state
    rows = model.model.multi_modal_projector(hidden)
    return [one[:count] for one, count in zip(rows, after, strict=True)]


CASE = FamilyCase(
    "qwen2_audio",
    build,
    encoder_names=("audio_tower.", "multi_modal_projector."),
    other_names=(newer_name,),
    durations=(1.3, 0.6),
    longest=float(SECONDS),
    oracle=OracleOverrides(auto_class="AutoModelForMultimodalLM", audio_features=audio_features),
)
