"""Ultravox, tiny and whole: an encoder of four seconds in 40 bands, Llama behind, a template of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.text import text_config
from tests.families.parts.weights import randomise
from tests.tiny_tokenizers import QWEN_SPECIAL_TOKENS, build_qwen_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SECONDS, BANDS = 4, 40
AUDIO = {
    "model_type": "whisper",
    "num_mel_bins": BANDS,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "max_source_positions": SECONDS * 50,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}
LARGEST_FILE = {"5GB": 10**9, "60KB": 60_000, "50KB": 50_000}


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    tie: bool = False,
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint, the language model and the encoder in it.

    Args:
        tie: share the input embedding with the output layer.
        fields: further fields of config.json.
    """
    from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

    from tests.families.parts.plain_ultravox import PlainUltravox

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_qwen_tokenizer(special_tokens=QWEN_SPECIAL_TOKENS)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    text = text_config(len(tokenizer), tokenizer, model_type="llama", tie_word_embeddings=tie)
    config = {
        "model_type": "ultravox",
        "architectures": ["UltravoxModel"],
        "audio_config": AUDIO,
        "text_config": text,
        "hidden_size": 96,
        "stack_factor": 8,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "norm_init": 0.4,
        "audio_latency_block_size": None,
        "torch_dtype": "float32",
        **(fields or {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    extractor = WhisperFeatureExtractor(feature_size=BANDS, chunk_length=SECONDS)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor.to_dict(), indent=2))
    ends = {"eos_token_id": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    model = PlainUltravox(config, LlamaConfig(**text), WhisperConfig(**AUDIO)).float()
    randomise(model, seed, quiet_ids=tokenizer.all_special_ids, gains=("norm", "ln_"))
    save_tensors(model.state_dict(), folder, LARGEST_FILE[shard_size], tied=tie)
    return folder


def save_tensors(tensors: Mapping[str, Any], folder: Path, largest: int, *, tied: bool) -> None:
    """Writes weights in one file or several, none larger than `largest` bytes where a tensor is not."""
    from safetensors.torch import save_file

    files: list[dict[str, Any]] = [{}]
    for name, tensor in tensors.items():
        if tied and name == "language_model.lm_head.weight":
            continue
        held = sum(each.nbytes for each in files[-1].values())
        if held and held + tensor.nbytes > largest:
            files.append({})
        files[-1][name] = tensor.contiguous()
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors")
        return
    names = [f"model-{index:05}-of-{len(files):05}.safetensors" for index in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        save_file(part, folder / name)
    where = {tensor: name for name, part in zip(names, files, strict=True) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _plain(name: str, *arguments: Any, **named: Any) -> Any:
    """Calls a function of the plain implementation, which needs torch."""
    return getattr(import_module("tests.families.parts.plain_ultravox"), name)(*arguments, **named)


CASE = FamilyCase(
    "ultravox",
    build,
    encoder_names=("audio_tower.", "multi_modal_projector."),
    variants={
        "": {},
        "norm_behind_tied": {"tie": True, "fields": {"projector_ln_mid": False}},
        "latency": {"fields": {"audio_latency_block_size": 25}},
    },
    durations=(1.3, 5.1),
    longest=9.37,
    oracle=OracleOverrides(
        **{
            name: partial(_plain, name)
            for name in ("load_model", "load_processor", "make_inputs", "audio_features", "generate")
        }
    ),
)
