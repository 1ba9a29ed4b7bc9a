"""Detokenizing piece by piece equals detokenizing at once, and never cuts a character."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.detokenizer import ByteDetokenizer, WindowDetokenizer, open_detokenizer
from llm_service.token_table import TokenTable
from tests.tiny_tokenizers import build_llama_tokenizer, build_qwen_tokenizer

BUILDERS = {"qwen": build_qwen_tokenizer, "llama": build_llama_tokenizer}


@cache
def tokenizer_of(style: str) -> tuple[Any, TokenTable]:
    tokenizer = BUILDERS[style]()
    return tokenizer, TokenTable(tokenizer.backend_tokenizer)


def pieces_of(style: str, token_ids: list[int]) -> list[str]:
    tokenizer, table = tokenizer_of(style)
    detokenizer = open_detokenizer(tokenizer.backend_tokenizer, table)
    return [*(detokenizer.add(token_id) for token_id in token_ids), detokenizer.finish()]


def test_each_style_gets_its_detokenizer() -> None:
    assert isinstance(
        open_detokenizer(tokenizer_of("qwen")[0].backend_tokenizer, tokenizer_of("qwen")[1]), ByteDetokenizer
    )
    assert isinstance(
        open_detokenizer(tokenizer_of("llama")[0].backend_tokenizer, tokenizer_of("llama")[1]),
        WindowDetokenizer,
    )


@pytest.mark.parametrize("style", BUILDERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_give_what_the_tokenizer_gives_at_once(style: str, data: st.DataObject) -> None:
    """Also special tokens, halves of characters and ids beyond the vocabulary."""
    tokenizer, _ = tokenizer_of(style)
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 5), max_size=40))
    assert "".join(pieces_of(style, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("style", BUILDERS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab  é語🙂👩‍🚀Ж\n▁"), max_size=20))
def test_no_piece_of_a_real_text_holds_half_a_character(style: str, text: str) -> None:
    tokenizer, _ = tokenizer_of(style)
    token_ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(style, token_ids)
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("style", BUILDERS)
def test_text_comes_as_soon_as_it_is_certain(style: str) -> None:
    tokenizer, _ = tokenizer_of(style)
    token_ids = tokenizer.backend_tokenizer.encode("a red circle", add_special_tokens=False).ids
    pieces = pieces_of(style, token_ids)
    assert all(pieces[:-1]), "a plain word waits for nothing"
    assert pieces[-1] == ""


def test_a_space_after_a_special_token_is_kept_in_the_sentencepiece_style() -> None:
    tokenizer, _ = tokenizer_of("llama")
    the = tokenizer.backend_tokenizer.encode("the", add_special_tokens=False).ids
    token_ids = [*the, tokenizer.eos_token_id, *the, tokenizer.bos_token_id, *the]
    assert "".join(pieces_of("llama", token_ids)) == "the the the"


def test_an_id_without_a_token_does_not_end_a_run_of_byte_pieces() -> None:
    tokenizer, _ = tokenizer_of("llama")
    first, padding, second = tokenizer.convert_tokens_to_ids("<0x00>"), len(tokenizer), 131
    assert "".join(pieces_of("llama", [first, padding, second])) == tokenizer.decode([first, second])


@pytest.mark.parametrize("style", BUILDERS)
def test_the_bytes_of_a_text_are_those_of_its_tokens(style: str) -> None:
    tokenizer, table = tokenizer_of(style)
    token_ids = tokenizer.backend_tokenizer.encode("ein rotes Bild: 赤い 🙂", add_special_tokens=False).ids
    assert (
        b"".join(table.raw(token_id) for token_id in token_ids).strip() == "ein rotes Bild: 赤い 🙂".encode()
    )


def test_half_a_character_is_told_as_a_replacement_character_and_its_bytes() -> None:
    tokenizer, table = tokenizer_of("llama")
    half = tokenizer.convert_tokens_to_ids("<0xE4>")
    assert (table.text(half), table.raw(half)) == ("\ufffd", b"\xe4")
    assert table.raw(10**6) == b""
