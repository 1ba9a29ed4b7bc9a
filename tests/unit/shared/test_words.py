"""Words are those of transformers' own tokenizer, times included."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llm_service.token_table import TokenTable
from shared.speech.transcript import Token
from shared.speech.words import words_of
from tests.families.whisper import build_tokenizer

TEXTS = {
    "english": " Hello, \"my\" friend! It's 5 o'clock (really) -- isn't it? [Yes] {no}  $3.50",
    "german": " Für ein Bild: „Grüße“, ¿qué? ¡Ay!",
    "chinese": "你好。我是一个人，（真的）吗？",  # noqa: RUF001
    "japanese": "こんにちは。 hello",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def table(tokenizer: Any) -> TokenTable:
    return TokenTable(tokenizer.backend_tokenizer)


def timed(ids: list[int], table: TokenTable) -> list[Token]:
    return [
        Token(token_id, table.raw(token_id), 0.0, start_s=0.1 * index, end_s=0.1 * index + 0.1)
        for index, token_id in enumerate(ids)
    ]


def check(tokenizer: Any, table: TokenTable, ids: list[int], language: str) -> None:
    from transformers.models.whisper.tokenization_whisper import _collate_word_timestamps

    tokens = timed(ids, table)
    times = [(token.start_s, token.end_s) for token in tokens]
    expected = _collate_word_timestamps(tokenizer, ids, times, language, False)
    got = words_of(tokens, language, 0.0, 1e6)
    shown = [word for word in expected if word["text"].strip()]
    assert [word.text for word in got] == [word["text"] for word in shown]
    assert [(word.start_s, word.end_s) for word in got] == [word["timestamp"] for word in shown]


@pytest.mark.parametrize("language", TEXTS)
def test_words_of_texts(tokenizer: Any, table: TokenTable, language: str) -> None:
    ids = tokenizer(TEXTS[language], add_special_tokens=False)["input_ids"]
    check(tokenizer, table, ids, language)


@pytest.mark.parametrize("seed", range(60))
def test_words_of_anything(tokenizer: Any, table: TokenTable, seed: int) -> None:
    """Whatever tokens follow each other, bytes that are no characters too."""
    generator = random.Random(seed)
    known = [index for index in range(460) if index not in tokenizer.all_special_ids]
    ids = generator.choices(known, k=generator.randint(1, 30))
    check(tokenizer, table, ids, ["english", "chinese"][seed % 2])


def test_words_stay_in_their_piece(table: TokenTable, tokenizer: Any) -> None:
    tokens = timed(tokenizer(" the colour of it", add_special_tokens=False)["input_ids"], table)
    words = words_of(tokens, "en", 60.0, 60.35)
    assert words[0].start_s == 60.0 and max(word.end_s for word in words) == 60.35
    assert all(word.start_s <= word.end_s for word in words)
    assert words_of([], "en", 0.0, 1.0) == []
