"""The tokenizer and the chat format: a small byte-level BPE, learnt from the sentences that are asked.

Splits text as Qwen2's tokenizer does, digit by digit, so that plain transformers reads it as a
`Qwen2Tokenizer`. All 256 bytes are in the vocabulary. Knows nothing about scenes beyond drawing
conversations to learn from.
"""

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from models.training import wordings
from models.training.conversations import converse

SIZE = 768
END_OF_TEXT = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE = "<|image_pad|>"
VIDEO = "<|video_pad|>"
SPECIAL = (END_OF_TEXT, START, END, VISION_START, VISION_END, IMAGE, VIDEO)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
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

_SAMPLED_CONVERSATIONS = 4000
_SAMPLE_SEED = 20260


def build_tokenizer() -> Tokenizer:
    """Learns the tokenizer anew; the same every time."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens' numbers."""
    numbers = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    return {token: number for token, number in numbers.items() if number is not None}


def _sentences() -> Iterator[str]:
    yield from ["system\n", "user\n", "assistant\n"] * 1000
    for questions, answer in wordings.TALK:
        yield from [*questions, answer] * 20
    for index in range(_SAMPLED_CONVERSATIONS):
        conversation = converse(random.Random(f"{_SAMPLE_SEED}/{index}"), 6)
        for exchange in conversation.exchanges:
            yield exchange.turn.question
            yield exchange.turn.answer
        if conversation.system is not None:
            yield conversation.system
