"""The tiny language model that most families get."""

from __future__ import annotations

from typing import Any

HIDDEN_SIZE = 64
CONTEXT_LENGTH = 2048


def text_config(vocabulary_size: int, tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Fields of a text configuration in Llama's words: 3 layers, 4 heads of 16, 2 of keys and values."""
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | more
