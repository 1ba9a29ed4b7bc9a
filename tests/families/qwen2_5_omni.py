"""Qwen2.5-Omni's thinker, tiny: windows in the tower and in the ears, recordings of up to four seconds."""

from __future__ import annotations

from pathlib import Path

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.pixels import CLIP_MEAN, CLIP_STD
from tests.families.parts.saving import save_checkpoint
from tests.families.parts.text import HIDDEN_SIZE, text_config
from tests.families.qwen2_5_vl import VISION
from tests.tiny_tokenizers import build_qwen_tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = {
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""Special tokens that the processor asks its tokenizer for by name."""

SECONDS, BANDS = 4, 40


def build(folder: Path, *, seed: int = 0, shard_size: str = "5GB", tie: bool = True) -> Path:
    """Writes the checkpoint; `tie` shares the input embedding with the output layer."""
    from transformers import Qwen2_5OmniThinkerConfig

    tokenizer = build_qwen_tokenizer(
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), named=NAMED
    )
    ids = {name: tokenizer.convert_tokens_to_ids(text) for name, text in NAMED.items()}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config = Qwen2_5OmniThinkerConfig(
        text_config=text_config(len(tokenizer), tokenizer, rope_parameters=rope, tie_word_embeddings=tie),
        vision_config=VISION,
        audio_config={
            "num_mel_bins": BANDS,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "n_window": 20,
            "max_source_positions": 100,
            "output_dim": HIDDEN_SIZE,
        },
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_token_index=ids["audio_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        user_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        tie_word_embeddings=tie,
    )
    common = {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_pixels": 56 * 56,
        "max_pixels": 168 * 168,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    # The hub's checkpoints have pictures and recordings in one file.
    both = common | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": BANDS,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": SECONDS,
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    return save_checkpoint(
        folder,
        config,
        tokenizer,
        TEMPLATE,
        {
            "preprocessor_config.json": both,
            "video_preprocessor_config.json": common | {"video_processor_type": "Qwen2VLVideoProcessor"},
        },
        seed=seed,
        shard_size=shard_size,
        auto_class="AutoModelForMultimodalLM",
    )


CASE = FamilyCase(
    "qwen2_5_omni",
    build,
    encoder_names=("visual.", "audio_tower."),
    other_names=("thinker.{}".format,),
    variants={"": {}, "untied": {"tie": False}},
    # The processor takes no fewer than 100,352 pixels of a frame.
    video_size=(364, 280),
    video_frames=2,
    fewest_frames=2,
    durations=(1.3, 0.7),
    longest=float(SECONDS),
    oracle=OracleOverrides(auto_class="AutoModelForMultimodalLM"),
)
