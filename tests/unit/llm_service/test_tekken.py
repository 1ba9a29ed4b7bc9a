"""Mistral's vocabulary files: the tokens of the vocabulary that they were written from; the chat format."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from llm_service.tekken import FILE_NAME, load_tekken
from llm_service.text_tokenizer import TextTokenizer
from llm_service.token_table import TokenTable
from shared.errors import InvalidRequestError
from tests.tiny_tokenizers import build_qwen_tokenizer

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)
"""As the tiny tokenizer cuts."""

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AUDIO]")
BEGIN_AUDIO = 9
SPECIAL_COUNT = 12
TEXTS = (
    "Describe the picture, please: what is in the image?",
    "  two  spaces\n\nand\tlines   ",
    "Was für ein Bild? Où est-il? 赤い丸は 😀",
    "0 1 2 100 2024, 3.14; (a) [b] {c}",
)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return build_qwen_tokenizer(special_tokens=("<|endoftext|>", "<|im_end|>"))


def content_of(tiny: Any) -> dict[str, Any]:
    """A file with the tiny tokenizer's vocabulary: its bytes in their own order, then what was learnt."""
    table = TokenTable(tiny.backend_tokenizer)
    learnt = [table.raw(token_id) for token_id in range(len(tiny))][: -len(tiny.all_special_ids)]
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in learnt if len(token) > 1]
    named = {**dict(enumerate(SPECIAL)), BEGIN_AUDIO: "[BEGIN_AUDIO]", SPECIAL_COUNT - 1: "<pad>"}
    return {
        "config": {
            "pattern": WORDS,
            "default_vocab_size": SPECIAL_COUNT + len(tokens),
            "default_num_special_tokens": SPECIAL_COUNT,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode()}
            for rank, token in enumerate([*tokens, b"beyond the size"])
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in named.items()
        ],
    }


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tekken")
    (folder / FILE_NAME).write_text(json.dumps(content_of(tiny)))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_same_vocabulary(text: str, folder: Path, tiny: Any) -> None:
    tokenizer, other = TextTokenizer.load(folder), TokenTable(tiny.backend_tokenizer)
    expected = [other.raw(token_id) for token_id in tiny(text)["input_ids"]]
    token_ids = tokenizer.encode(text)
    assert [tokenizer.table.raw(token_id) for token_id in token_ids] == expected
    assert len(expected) < len(text.encode())
    assert tokenizer.decode(token_ids) == text


def test_special_tokens_have_their_ids(folder: Path) -> None:
    tokenizer = TextTokenizer.load(folder)
    assert [tokenizer.backend.token_to_id(text) for text in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.backend.token_to_id("[BEGIN_AUDIO]") == BEGIN_AUDIO
    assert tokenizer.backend.token_to_id("<SPECIAL_8>") == 8
    assert tokenizer.encode("[INST]a[/INST]") == [3, SPECIAL_COUNT + ord("a"), 4]
    assert tokenizer.end_token_id == 2
    assert tokenizer.backend.token_to_id("beyondĠtheĠsize") is None


def test_conversations_are_written_as_mistrals_package_does(folder: Path) -> None:
    hf = TextTokenizer.load(folder).hf
    messages = [
        {"role": "system", "content": "Be nice. "},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hear: "},
                {"type": "audio"},
                {"type": "text", "text": " what?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A bird. "}]},
        {"role": "user", "content": "and then?"},
    ]
    assert hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<s>[SYSTEM_PROMPT]Be nice. [/SYSTEM_PROMPT][INST]hear: [BEGIN_AUDIO][AUDIO] what?[/INST]"
        "A bird.</s>[INST]and then?[/INST]"
    )


def test_other_versions_have_no_chat_format(tiny: Any, tmp_path: Path) -> None:
    content = content_of(tiny)
    content["config"]["version"] = "v3"
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    assert load_tekken(tmp_path / FILE_NAME).chat_template is None


@pytest.mark.parametrize("lost", ["config", "vocab", "special_tokens"])
def test_a_broken_file_is_refused(lost: str, tiny: Any, tmp_path: Path) -> None:
    content = {name: part for name, part in content_of(tiny).items() if name != lost}
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(InvalidRequestError, match=FILE_NAME):
        load_tekken(tmp_path / FILE_NAME)
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(InvalidRequestError, match=FILE_NAME):
        load_tekken(tmp_path / FILE_NAME)
