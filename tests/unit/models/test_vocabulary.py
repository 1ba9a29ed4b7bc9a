"""The tokenizer covers every byte and is learnt the same each time; the chat template takes both contents."""

from functools import cache
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from models import BUNDLED
from models.senses import tokens
from models.training.vocabulary import SIZE, SPECIAL, build_tokenizer


@cache
def built() -> Tokenizer:
    return build_tokenizer()


@cache
def bundled() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    text = normalize("NFC", text)
    ids = built().encode(text, add_special_tokens=False).ids
    if not any(token in text for token in SPECIAL):
        assert built().decode(ids) == text


@settings(deadline=None)
@given(st.text())
def test_the_bundled_tokenizer_agrees(text: str) -> None:
    assert bundled()(text)["input_ids"] == tokens.build_tokenizer().encode(text).ids


def test_size_and_special_tokens() -> None:
    assert built().get_vocab_size() == SIZE
    assert [built().token_to_id(token) for token in SPECIAL] == list(range(len(SPECIAL)))


def test_numbers_are_read_digit_by_digit() -> None:
    assert built().encode("427.").tokens == ["4", "2", "7", "."]


@pytest.mark.parametrize("content", ["Hi", [{"type": "text", "text": "Hi"}]])
def test_chat_template_takes_text_and_parts(content: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    text = bundled().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image_url", "image_url": {"url": ""}}])
def test_chat_template_places_pictures(part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Which colour?"}]}]
    text = bundled().apply_chat_template(messages, tokenize=False)
    assert "user\n<|vision_start|><|image_pad|><|vision_end|>Which colour?<|im_end|>\n" in text
