"""Whisper, tiny: windows of four seconds in 40 bands, three languages, times in steps of 20 ms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.families.case import FamilyCase, OracleOverrides
from tests.families.parts.weights import randomise
from tests.tiny_tokenizers import build_qwen_tokenizer

SECONDS, BANDS = 4, 40
ROWS = SECONDS * 50
POSITIONS = 448
MOST_SAID = 223
LANGUAGES = ("<|en|>", "<|de|>", "<|fr|>")
MARKS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *LANGUAGES,
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
ALIGNMENT_HEADS = [[0, 1], [1, 0], [1, 1]]


def build(
    folder: Path,
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    english: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint, as the hub's are: without a chat template.

    Args:
        english: a model of English alone.
        config: further fields of the configuration.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    ids = {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in MARKS}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_mel_bins": BANDS,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_layers": 3,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 48,
        "max_source_positions": ROWS,
        "max_target_positions": POSITIONS,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "median_filter_width": 7,
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**(fields | dict(config or {})))).float()
    randomise(model, seed, quiet_ids=[end])
    model.model.encoder.embed_positions.requires_grad_(False)
    with torch.no_grad():
        # Output and input embeddings are one: by itself a token is likeliest to follow itself.
        for layer in model.model.decoder.layers:
            layer.self_attn.out_proj.weight *= 2
            layer.encoder_attn.out_proj.weight *= 4
            layer.fc2.weight *= 4
    own = {} if english else {"lang_to_id": {name: ids[name] for name in LANGUAGES}}
    tasks = (
        {} if english else {"task_to_id": {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}}
    )
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        prev_sot_token_id=ids["<|startofprev|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=not english,
        suppress_tokens=[5, 17, 40, *sorted(set(ids.values()) - {end})],
        begin_suppress_tokens=[220, end],
        max_initial_timestamp_index=50,
        max_length=POSITIONS,
        return_timestamps=False,
        alignment_heads=ALIGNMENT_HEADS,
        **own,
        **tasks,
    )
    extractor = WhisperFeatureExtractor(feature_size=BANDS, chunk_length=SECONDS)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor.to_dict(), indent=2))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def build_tokenizer() -> Any:
    """The hub's class over a small vocabulary; tokens for times are not special, as there."""
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer

    model = json.loads(build_qwen_tokenizer(special_tokens=("<|endoftext|>",)).backend_tokenizer.to_str())[
        "model"
    ]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    tokenizer = WhisperTokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    times = [
        AddedToken(f"<|{index * 0.02:.2f}|>", special=False, normalized=False) for index in range(ROWS + 1)
    ]
    tokenizer.add_tokens(times)
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    return tokenizer


def load_processor(folder: Path) -> Any:
    """The checkpoint's own, which writes prompts of conversations as Percept does for Whisper."""
    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(folder)
    processor.apply_chat_template = render
    return processor


def render(messages: list[dict[str, Any]], **_: Any) -> str:
    """All text of a conversation as what was said before."""
    parts = [
        part["text"]
        for message in messages
        for part in (
            [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"]
        )
        if part["type"] == "text"
    ]
    said = " ".join(parts).strip()
    return f"<|startofprev|> {said}<|startoftranscript|>" if said else "<|startoftranscript|>"


def make_inputs(
    processor: Any,
    text: str,
    pictures: list[Any],
    videos: list[Any],
    arguments: Mapping[str, Any],
    recordings: list[Any] | None = None,
) -> Mapping[str, Any]:
    """The extractor's features of the one recording, and the decoder's prompt as `input_ids`."""
    import torch

    said = text.replace("<|audio|>", "")
    features = processor.feature_extractor(
        (recordings or [])[0], sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    ids = processor.tokenizer([said], add_special_tokens=False, return_tensors="pt")["input_ids"]
    if said.startswith("<|startofprev|>"):
        # As OpenAI's own code does: the last tokens of what was said count.
        ids = torch.cat([ids[:, :1], ids[:, 1:-1][:, -MOST_SAID:], ids[:, -1:]], dim=1)
    return {"input_features": features["input_features"], "input_ids": ids}


def audio_features(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The encoder's states."""
    return list(model.model.encoder(inputs["input_features"]).last_hidden_state)


def generate(model: Any, inputs: Mapping[str, Any], count: int) -> list[int]:
    """What the prompt leaves open, filled in as `generate` does, then `count` greedy tokens.

    transformers hears the language without what was said before; here as Percept does, with it.
    """
    import torch

    config = model.generation_config
    features, ids = inputs["input_features"], inputs["input_ids"]
    filled: list[int] = []
    if ids[0, -1] == config.decoder_start_token_id:
        logits = model(input_features=features, decoder_input_ids=ids).logits[0, -1]
        languages = torch.tensor(sorted(config.lang_to_id.values()))
        spoken = int(languages[logits[languages].argmax()])
        filled = [spoken, config.task_to_id["transcribe"], config.no_timestamps_token_id]
    prompt = torch.cat([ids, torch.tensor([filled], dtype=torch.long)], dim=1)
    # Once: a model that was never trained writes times where none belong, and would go on behind them.
    output = model.generate(
        input_features=features,
        decoder_input_ids=prompt,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        force_unique_generate_call=True,
        language="en",
    )
    return filled + output[0].tolist()[-count:]


CASE = FamilyCase(
    "whisper",
    build,
    encoder_names=("model.encoder.",),
    variants={"": {}, "english": {"english": True}},
    other_names=(lambda name: name.removeprefix("model."),),
    durations=(1.3, 2.6),
    longest=float(SECONDS),
    takes_text_alone=False,
    most_pictures=1,
    filled_in=3,
    rows_in_front=-(-ROWS // 32) * 32,
    oracle=OracleOverrides(
        auto_class="WhisperForConditionalGeneration",
        load_processor=load_processor,
        make_inputs=make_inputs,
        audio_features=audio_features,
        generate=generate,
    ),
)
