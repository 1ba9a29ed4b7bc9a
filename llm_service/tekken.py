"""Mistral's vocabulary files (tekken.json) as a fast tokenizer, for checkpoints that bring nothing else.

Knows the file: bytes of tokens in the order of their ranks, special tokens before them, an
expression that cuts text. The chat format of version 7 is that of Mistral's own package.
Does not know media.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_service.token_table import BYTE_CHARACTERS
from shared.errors import InvalidRequestError

FILE_NAME = "tekken.json"

CHAT_TEMPLATES: Mapping[str, str] = {
    "v7": "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]"
    "{% elif message['role'] != 'assistant' %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{% set said = namespace(text='') %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{% set said.text = said.text + '[BEGIN_AUDIO][AUDIO]' %}"
    "{% elif part['type'] == 'text' %}{% set said.text = said.text + part['text'] %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ said.text.rstrip(' ') }}{{ eos_token }}"
    "{% else %}{{ said.text }}"
    "{% if message['role'] == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}"
    "{% endif %}{% endfor %}",
}
"""By the file's version; others have none, and need one beside them."""

_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def load_tekken(file: Path) -> Any:
    """The tokenizer of a tekken.json, as a `PreTrainedTokenizerFast`.

    Raises:
        InvalidRequestError: the file is not of this kind.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        backend, specials = _backend(content)
        version = str(content["config"].get("version"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequestError(
            f"{file} is no usable vocabulary: {type(error).__name__}: {reason}"
        ) from error
    named = {name: token for name, token in _NAMED.items() if token in specials}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=CHAT_TEMPLATES.get(version),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _backend(content: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    """The tokenizer and its special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    config = content["config"]
    specials = _special_tokens(content, int(config["default_num_special_tokens"]))
    size = int(config["default_vocab_size"]) - len(specials)
    ranks = {
        base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(content["vocab"][:size])
    }
    vocabulary = {token: index for index, token in enumerate(specials)}
    vocabulary |= {_written(token): len(specials) + rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(_merges(ranks)), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer, specials


def _special_tokens(content: Mapping[str, Any], count: int) -> list[str]:
    """In the order of their ids; ids without a name get one."""
    named = {int(entry["rank"]): str(entry["token_str"]) for entry in content["special_tokens"]}
    if any(rank >= count for rank in named):
        raise ValueError(f"a special token lies behind the {count} that there are")
    return [named.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)]


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[str, str]]:
    """All pairs that make a token, by that token's rank: the lowest rank is merged first."""
    written = {token: _written(token) for token in ranks}
    for token in ranks:
        cuts = [
            (token[:index], token[index:])
            for index in range(1, len(token))
            if token[:index] in ranks and token[index:] in ranks
        ]
        for left, right in sorted(cuts, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])):
            yield written[left], written[right]


def _written(token: bytes) -> str:
    """A token's bytes as byte-level vocabularies write them."""
    return "".join(BYTE_CHARACTERS[byte] for byte in token)
