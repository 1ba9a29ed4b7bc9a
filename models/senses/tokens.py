"""The thinker's tokenizer and chat format: those of `models.training` under the names that Qwen2.5-Omni's
processor asks for, and three tokens more for what is heard.

Knows which number every token has. Knows nothing about weights.
"""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer

from models.training import vocabulary

END_OF_TEXT, START, END = vocabulary.END_OF_TEXT, vocabulary.START, vocabulary.END
VISION_START, VISION_END = "<|vision_bos|>", "<|vision_eos|>"
IMAGE, VIDEO = "<|IMAGE|>", "<|VIDEO|>"
AUDIO_START, AUDIO_END, AUDIO = "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"
SPECIAL = (END_OF_TEXT, START, END, VISION_START, VISION_END, IMAGE, VIDEO, AUDIO_START, AUDIO_END, AUDIO)
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
"""Special tokens by the names under which the processor looks for them."""

_RENAMED = {
    vocabulary.VISION_START: VISION_START,
    vocabulary.VISION_END: VISION_END,
    vocabulary.IMAGE: IMAGE,
    vocabulary.VIDEO: VIDEO,
}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}"
    "{%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}"
    "{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}"
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
    known = json.loads(vocabulary.build_tokenizer().to_str())
    for token in known["added_tokens"]:
        token["content"] = _RENAMED.get(token["content"], token["content"])
    words = known["model"]["vocab"]
    for old, new in _RENAMED.items():
        words[new] = words.pop(old)
    known["model"]["vocab"] = dict(sorted(words.items(), key=lambda word: word[1]))
    tokenizer = Tokenizer.from_str(json.dumps(known))
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
