"""A tokenizer made offline whose ids are those of Qwen2-VL's special tokens.

The 256 bytes and the merges of the load generator's words come first, one token for each
word. What is missing up to the first special id is filled with tokens that no text leads to
but that decode to a printable word each: a model with random weights then says something in
every step, and a client sees every token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from percept.bench.prompts import WORDS

TEXT_TOKENS = 151_643
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_IDS = {token: TEXT_TOKENS + index for index, token in enumerate(SPECIAL_TOKENS)}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a good friend.<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

_FILLER = "Ġ~{}"
"""A word with a space before it, in byte-level spelling."""


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, its configuration and the chat template."""
    build_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2VLProcessor",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "extra_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 32_768,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def build_tokenizer() -> Any:
    """The `tokenizers.Tokenizer`, the same every time; takes about two seconds."""
    from tokenizers import AddedToken, Tokenizer, models

    learnt = json.loads(_learn().to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    for index in range(TEXT_TOKENS - len(vocabulary)):
        vocabulary[_FILLER.format(index)] = len(vocabulary)
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt["merges"]]
    tokenizer = _qwen_style(Tokenizer(models.BPE(vocabulary, merges)))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _learn() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = _qwen_style(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=8_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = ["system", "user", "assistant", "You", "are", "a", "friend"]
    tokenizer.train_from_iterator([f"{word} {word}" for word in (*WORDS, *names)], trainer)
    return tokenizer


def _qwen_style(tokenizer: Any) -> Any:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
