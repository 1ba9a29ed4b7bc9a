"""A layer's window is the one that its modeling code masks by."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from llm_service.runner.layer_window import layer_window

SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def test_mistrals_is_the_configurations() -> None:
    assert layer_window(MistralAttention(MistralConfig(**SIZES, sliding_window=7), 0)) == 7
    assert layer_window(MistralAttention(MistralConfig(**SIZES, sliding_window=None), 0)) is None


def test_llamas_look_back_without_end() -> None:
    """Whatever a configuration says beside."""
    config = LlamaConfig(**SIZES, sliding_window=7)
    assert config.sliding_window == 7
    assert layer_window(LlamaAttention(config, 0)) is None


def test_qwens_layers_have_their_own() -> None:
    config = Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1)
    assert [layer_window(Qwen3Attention(config, index)) for index in range(2)] == [None, 7]
