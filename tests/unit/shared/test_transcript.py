"""Segments are those of transformers' own tokenizer; subtitles can be read by their own rules."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from llm_service.token_table import TokenTable
from shared.speech.transcript import Segment, Token, segments_of, text_of, to_srt, to_vtt
from tests.families.whisper import ROWS, build_tokenizer

LENGTH = ROWS * 0.02


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def table(tokenizer: Any) -> TokenTable:
    return TokenTable(tokenizer.backend_tokenizer)


def tokens_of(ids: list[int], table: TokenTable) -> list[Token]:
    return [Token(token_id, table.raw(token_id), -0.5) for token_id in ids]


def answer(tokenizer: Any, generator: random.Random, *, closed: bool) -> list[int]:
    """What the rules of times allow: pairs of times that do not fall, text between them."""
    zero = tokenizer.convert_tokens_to_ids("<|0.00|>")
    words = tokenizer("the colour of a circle, für ein Bild", add_special_tokens=False)["input_ids"]
    times = sorted(generator.randrange(ROWS + 1) for _ in range(2 * generator.randint(1, 5)))
    ids = []
    for start, end in zip(times[::2], times[1::2], strict=True):
        ids.append(zero + start)
        ids += generator.choices(words, k=generator.randint(1, 6))
        ids.append(zero + end)
    return ids if closed else [*ids, zero + times[-1], *generator.choices(words, k=3)]


@pytest.mark.parametrize("seed", range(40))
def test_segments_are_transformers_offsets(tokenizer: Any, table: TokenTable, seed: int) -> None:
    generator = random.Random(seed)
    closed = seed % 3 > 0
    ids = answer(tokenizer, generator, closed=closed)
    prefix = tokenizer.convert_tokens_to_ids(["<|de|>", "<|transcribe|>"])
    got = segments_of(tokens_of([*prefix, *ids, tokenizer.eos_token_id], table), 0.0, LENGTH)
    offsets = tokenizer.decode(ids, output_offsets=True)["offsets"]
    expected = [(offset["text"], *offset["timestamp"]) for offset in offsets if offset["text"].strip()]
    pairs = [(segment.text, segment.start_s, segment.end_s) for segment in got]
    if not closed:
        # transformers leaves out what no time ends.
        left_over, start, end = pairs.pop()
        assert left_over.strip() and start <= end == LENGTH
    assert [text for text, *_ in pairs] == [text for text, *_ in expected]
    assert [time for _, *times in pairs for time in times] == pytest.approx(
        [time for _, *times in expected for time in times]
    )
    assert text_of(tokens_of(ids, table)) == "".join(segment.text for segment in got)


def test_segments_of_a_piece_stay_in_it(tokenizer: Any, table: TokenTable) -> None:
    times = tokenizer.convert_tokens_to_ids(["<|0.50|>", "<|3.50|>", "<|3.60|>", "<|3.90|>"])
    words = tokenizer("the", add_special_tokens=False)["input_ids"]
    ids = [times[0], *words, *times[1:3], *words, times[3]]
    first, second = segments_of(tokens_of(ids, table), 100.0, 102.0)
    assert (first.start_s, first.end_s, first.seek_s) == (100.5, 102.0, 100.0)
    assert (second.start_s, second.end_s) == (102.0, 102.0)


def test_an_answer_without_times_is_one_segment(tokenizer: Any, table: TokenTable) -> None:
    ids = tokenizer("the colour", add_special_tokens=False)["input_ids"]
    (only,) = segments_of(tokens_of(ids, table), 1.0, 2.0)
    assert (only.start_s, only.end_s, only.text) == (1.0, 2.0, "the colour")
    assert only.mean_logprob == -0.5
    assert segments_of([], 0.0, 1.0) == []
    assert segments_of(tokens_of([tokenizer.eos_token_id], table), 0.0, 1.0) == []


def segment(start: float, end: float, text: str) -> Segment:
    return Segment(start, end, text, (), 0.0)


def test_subtitles() -> None:
    segments = [segment(0.0, 1.9996, " Hello,\n\nthere --> you "), segment(3661.25, 3662.0, " Bye.")]
    assert to_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:02,000\nHello, there -> you\n\n2\n01:01:01,250 --> 01:01:02,000\nBye.\n"
    )
    vtt = to_vtt(segments)
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nHello, there -> you\n\n01:01:01.250")
    assert len(re.findall(r"^\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}$", vtt, re.MULTILINE)) == 2
    assert to_srt([]) == ""


def test_text_that_repeats_itself_compresses_well() -> None:
    assert segment(0, 1, "la " * 100).compression_ratio > 2.4 > segment(0, 1, "la la").compression_ratio
    assert segment(0, 1, "").compression_ratio == 0
