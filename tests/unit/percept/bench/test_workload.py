"""What is asked: unlike where it must be, the same where it was asked for, and repeatable."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from percept.bench import Target, Workload
from percept.bench.bodies import BodyBuilder
from percept.bench.pictures import draw_png
from percept.bench.prompts import OPENING_WORDS, PromptWriter, TextScale
from shared.errors import InvalidRequestError

TARGET = Target("http://127.0.0.1:1/v1", model="m")
SMALL: dict[str, Any] = {"images": 1, "image_width": 40, "image_height": 24}


def bodies(count: int, target: Target = TARGET, **given: Any) -> list[dict[str, Any]]:
    builder = BodyBuilder(target, Workload(**given), TextScale())
    return [json.loads(builder.build(index).body) for index in range(count)]


def pictures_of(body: dict[str, Any]) -> list[str]:
    content = body["messages"][0]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")


def test_the_same_workload_is_the_same_bytes() -> None:
    shape = Workload(images=2, image_share=0.5, image_width=32, image_height=32, seed=5)
    first, again = (BodyBuilder(TARGET, shape, TextScale()) for _ in range(2))
    assert [first.build(index) for index in range(-3, 30)] == [again.build(index) for index in range(-3, 30)]


def test_another_seed_shares_nothing() -> None:
    one, other = (bodies(50, seed=seed, **SMALL) for seed in (1, 2))
    assert not {text_of(body) for body in one} & {text_of(body) for body in other}
    assert not {pictures_of(body)[0] for body in one} & {pictures_of(body)[0] for body in other}


@pytest.mark.parametrize("tokens", [1, OPENING_WORDS, 40])
def test_no_prompt_begins_as_another(tokens: int) -> None:
    """However short: a prefix cache must find nothing, not even a first block."""
    writer = PromptWriter(Workload(prompt_tokens=tokens), TextScale())
    openings = {" ".join(writer.text(index).split()[:OPENING_WORDS]) for index in range(-100, 20_000)}
    assert len(openings) == 20_100


def test_neighbours_differ_from_the_first_word_on() -> None:
    writer = PromptWriter(Workload(), TextScale())
    first_words = [writer.text(index).split()[0] for index in range(100)]
    assert len(set(first_words)) > 50


def test_prompts_have_the_wanted_length() -> None:
    writer = PromptWriter(Workload(prompt_tokens=320), TextScale(template_tokens=20, tokens_per_word=1.5))
    assert len(writer.text(7).split()) == 200


def test_a_repeated_prefix_is_shared_and_the_rest_is_not() -> None:
    texts = [text_of(body).split() for body in bodies(20, prompt_tokens=100, repeated_prefix_tokens=60)]
    assert {len(words) for words in texts} == {100}
    assert len({tuple(words[:60]) for words in texts}) == 1
    assert len({tuple(words[60 : 60 + OPENING_WORDS]) for words in texts}) == 20


def test_a_prefix_as_long_as_the_prompt_makes_all_prompts_the_same() -> None:
    assert len({text_of(body) for body in bodies(9, prompt_tokens=50, repeated_prefix_tokens=50)}) == 1


def test_fresh_pictures_are_all_unlike() -> None:
    found = [url for body in bodies(30, **SMALL | {"images": 3}) for url in pictures_of(body)]
    assert len(found) == len(set(found)) == 90


def test_repeated_pictures_come_in_turn_from_their_pool() -> None:
    found = [pictures_of(body)[0] for body in bodies(12, repeated_images=4, **SMALL)]
    assert found[:4] * 3 == found
    assert len(set(found)) == 4


def test_a_mix_has_its_share_in_every_window() -> None:
    shape = Workload(images=1, image_share=0.3, seed=9)
    kinds = [shape.kind(index) for index in range(200)]
    assert [kinds[at : at + 20].count("image") for at in range(0, 200, 20)] == [6] * 10
    assert kinds[:20] != kinds[20:40]


def test_a_small_share_adds_up_over_windows() -> None:
    kinds = [Workload(images=1, image_share=0.01).kind(index) for index in range(1000)]
    assert kinds.count("image") == 10


@pytest.mark.parametrize(
    ("given", "kind"), [({}, "text"), ({"images": 1}, "image"), ({"images": 1, "image_share": 0.0}, "text")]
)
def test_no_mix_is_one_kind(given: dict[str, Any], kind: str) -> None:
    assert {Workload(**given).kind(index) for index in range(50)} == {kind}


@pytest.mark.parametrize(
    ("width", "height", "cell"), [(1, 1, 1), (17, 9, 4), (448, 300, 8), (5, 7, 1), (3, 2, 9)]
)
def test_pictures_are_mosaics_of_their_size(width: int, height: int, cell: int) -> None:
    picture = Image.open(io.BytesIO(draw_png("lot", width, height, cell)), formats=["PNG"])
    picture.load()
    assert (picture.size, picture.mode) == ((width, height), "RGB")
    for x, y in ((0, 0), (width - 1, height - 1), (width // 2, height // 2)):
        corner = (x // cell * cell, y // cell * cell)
        assert picture.getpixel((x, y)) == picture.getpixel(corner)


def test_colours_are_spread_evenly() -> None:
    picture = Image.open(io.BytesIO(draw_png("lot", 128, 128, 1)))
    mean = sum(picture.convert("L").histogram()[value] * value for value in range(256)) / 128**2
    assert mean == pytest.approx(127.5, abs=2)


def test_larger_cells_make_smaller_files() -> None:
    sizes = [len(draw_png("lot", 224, 224, cell)) for cell in (1, 4, 16)]
    assert sizes[0] > 224 * 224 * 3 * 0.9
    assert sizes[0] > 8 * sizes[1] > 32 * sizes[2]


def test_pictures_stand_before_the_text_unless_asked_otherwise() -> None:
    for given, order in ({}, ["image_url", "text"]), ({"text_first": True}, ["text", "image_url"]):
        (body,) = bodies(1, **SMALL, **given)
        assert [part["type"] for part in body["messages"][0]["content"]] == order
    picture = base64.b64decode(pictures_of(body)[0].partition(",")[2])
    assert Image.open(io.BytesIO(picture)).size == (40, 24)


def test_fields_that_strict_servers_refuse_can_be_left_out() -> None:
    (usual,) = bodies(1, output_tokens=9)
    assert usual["max_tokens"] == usual["min_tokens"] == 9
    assert usual["ignore_eos"] is True and usual["stream_options"] == {"include_usage": True}
    strict = Target(TARGET.url, model="m", ignore_eos=False, stream_usage=False, extra_body={"top_k": 1})
    (plain,) = bodies(1, strict, output_tokens=9)
    assert set(plain) == {"model", "stream", "temperature", "max_tokens", "messages", "top_k"}


@pytest.mark.parametrize(
    ("url", "chat"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
        ("https://h/api/v3", "https://h/api/v3/chat/completions"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1/chat/completions"),
    ],
)
def test_urls(url: str, chat: str) -> None:
    assert Target(url).chat_url == chat


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Target("http://h:1", api_key="secret"))


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_tokens": 0},
        {"output_tokens": 0},
        {"images": -1},
        {"image_share": 1.1},
        {"image_width": 0},
        {"prompt_tokens": 10, "repeated_prefix_tokens": 11},
    ],
)
def test_senseless_workloads_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Workload(**given)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h/v1", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="http://"):
        Target(url)
