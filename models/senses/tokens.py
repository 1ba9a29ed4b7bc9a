"""The thinker's tokenizer and chat format: those of `models.training`, and three tokens more for sound.

Knows which number every token has. Knows nothing about weights.
"""

from functools import cache

from tokenizers import AddedToken, Tokenizer

from models.training import vocabulary

END_OF_TEXT, START, END = vocabulary.END_OF_TEXT, vocabulary.START, vocabulary.END
VISION_START, VISION_END = vocabulary.VISION_START, vocabulary.VISION_END
IMAGE, VIDEO = vocabulary.IMAGE, vocabulary.VIDEO
AUDIO_START, AUDIO_END, AUDIO = "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"
SPECIAL = (*vocabulary.SPECIAL, AUDIO_START, AUDIO_END, AUDIO)
SIZE = vocabulary.SIZE + 8
"""Rows of the embedding, of which the last five are nobody's."""

NAMED = {
    "image_token": IMAGE,
    "video_token": VIDEO,
    "audio_token": AUDIO,
    "vision_bos_token": VISION_START,
    "vision_eos_token": VISION_END,
    "audio_bos_token": AUDIO_START,
    "audio_eos_token": AUDIO_END,
}
"""Special tokens by the names under which Qwen2.5-Omni's processor looks for them."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}"
    "{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}"
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


@cache
def build_tokenizer() -> Tokenizer:
    """The tokenizer; every token of `models.training` keeps its number."""
    tokenizer = vocabulary.build_tokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (AUDIO_START, AUDIO_END, AUDIO)]
    )
    return tokenizer


@cache
def special_ids() -> dict[str, int]:
    """The special tokens' numbers."""
    tokenizer = build_tokenizer()
    return {token: _number(tokenizer, token) for token in SPECIAL}


def _number(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number
