"""A Whisper checkpoint of whisper-small's sizes with random weights, for measuring what it costs.

Its tokenizer is made offline: ids and special tokens are where whisper-small has them, each other
token decodes to a printable word. Its answers mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 51_865
END, START, FIRST_LANGUAGE, FIRST_TASK = 50_257, 50_258, 50_259, 50_358
TASKS = ("translate", "transcribe")
MARKS = ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")

SMALL: dict[str, Any] = {
    "d_model": 768,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_layers": 12,
    "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072,
}
TINY: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 96,
}


def write_whisper(folder: Path, *, tiny: bool = False, seed: int = 0) -> Path:
    """Writes the checkpoint in bfloat16; returns `folder`.

    Args:
        tiny: few and narrow layers, for trying the measurement out.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START}
    torch.manual_seed(seed)
    config = WhisperConfig(vocab_size=VOCABULARY_SIZE, **(TINY if tiny else SMALL), **ends)
    model = WhisperForConditionalGeneration(config).to(torch.bfloat16)
    tokenizer = _tokenizer()
    model.generation_config = GenerationConfig(
        **ends,
        **_ids(tokenizer),
        is_multilingual=True,
        # None ends an answer early: all have as many tokens as are asked for.
        suppress_tokens=list(range(END, VOCABULARY_SIZE)),
        begin_suppress_tokens=[220],
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor.to_dict(), indent=2))
    return folder


def _tokenizer() -> Any:
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    vocabulary = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for index in range(END - len(vocabulary)):
        vocabulary[f"\u0120~{index}"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = END
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    # whisper-small knows all languages but the last, which came later.
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[: FIRST_TASK - FIRST_LANGUAGE]]
    special = ["<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in TASKS), *MARKS]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    count = VOCABULARY_SIZE - END - 1 - len(special)
    tokenizer.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", normalized=False) for index in range(count)])
    assert len(tokenizer) == VOCABULARY_SIZE, len(tokenizer)
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, Any]:
    """What a generation config says of the special tokens."""
    known = tokenizer.get_vocab()
    languages = {text: index for text, index in known.items() if FIRST_LANGUAGE <= index < FIRST_TASK}
    return {
        "lang_to_id": languages,
        "task_to_id": {task: known[f"<|{task}|>"] for task in TASKS},
        "prev_sot_token_id": known["<|startofprev|>"],
        "no_timestamps_token_id": known["<|notimestamps|>"],
    }
