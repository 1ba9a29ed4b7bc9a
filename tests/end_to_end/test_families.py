"""Every family through all three services answers as transformers does, token for token.

Float32 on the CPU, tiny random-weight checkpoints (`tests/families`), greedy. The
prefill chunk is small, so that prompts take several and spans are cut where they may
be. The services are started once for a family; only it: -k MODEL_TYPE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from percept import AsyncClient, Embeddings, SamplingParams
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.catalogue import Modality
from shared.families.takes_tasks import TakesTasks
from shared.families.writes_speech import WritesSpeech
from tests.asking import frame_list_part, user
from tests.embedding_parts import encode, part_from
from tests.families import all_cases, main_modality, takes
from tests.families.case import FamilyCase
from tests.items import item, modality_of, video
from tests.oracle import Media, Oracle, Recording, Video
from tests.served_family import BLOCK, Question, ServedFamily, question

pytestmark = pytest.mark.end_to_end

CASES = all_cases()
TOKENS = 16
LONG = "tell me about the colours of all things in the picture and where they are " * 3


def questions_for(case: FamilyCase) -> dict[str, Question]:
    """The questions that a family can be asked, by name: eight, and those with its other modalities."""
    asked = {
        "no item": question(["hello, who are you?"]),
        "no item, longer than a chunk": question([LONG]),
        "an item before the text": question([item(case, 1), "what is this?"]),
        "an item after the text": question(["look:", item(case, 2, 1)]),
        "an item in a long text": question([LONG, item(case, 3), LONG]),
        "three items between text": question(
            ["first", item(case, 4), "then", item(case, 5, 1), item(case, 6), "compare"]
        ),
        "three items in two messages": question(
            [item(case, 7, 1), "what is it?"],
            ["a red circle"],
            ["and", item(case, 8), "and", item(case, 9, 1), "?"],
        ),
        "the same item twice": question([item(case, 10), "and again", item(case, 10), "the same?"]),
    }
    main, *others = case.facts.modalities
    for place, modality in enumerate(others):
        asked[f"{modality} alone"] = question([item(case, 20 + place, 0, modality), "what happens?"])
        if case.mixes_modalities:
            asked[f"{main} and {modality}"] = question(
                ["first", item(case, 11, 1), item(case, 30 + place, 1, modality), "compare"]
            )
    most = case.most_pictures
    least = 0 if case.takes_text_alone else 1
    return {
        name: one
        for name, one in asked.items()
        if len(one.media) >= least and (most is None or len(one.media) <= most)
    }


@pytest.fixture(scope="module", params=CASES)
def served(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path], oracle: Oracle
) -> Iterator[ServedFamily]:
    family = ServedFamily(CASES[request.param], tiny_checkpoint(request.param), oracle)
    try:
        yield family
    finally:
        family.close()


async def test_all_at_once_and_each_again(served: ServedFamily) -> None:
    asked = questions_for(served.case)
    answers = await asyncio.gather(*(served.answer(one.messages, TOKENS) for one in asked.values()))
    for (name, one), answer in zip(asked.items(), answers, strict=True):
        await served.check(answer, one, name, TOKENS)
    for name, one in asked.items():
        again = await served.answer(one.messages, TOKENS)
        await served.check(again, one, name, TOKENS)
        if served.case.shares_prefixes:
            # All whole blocks of the prompt but the last: its last token is computed again.
            found = again.usage.prompt_tokens_details.cached_tokens
            assert found >= (again.usage.prompt_tokens - 1) // BLOCK * BLOCK - BLOCK, name


async def test_prompts_in_the_models_own_format(served: ServedFamily) -> None:
    """The oracle's own prompts, with one placeholder for each item, through /v1/completions, all at once."""
    asked = questions_for(served.case)
    texts = {name: served.expected(one, name, TOKENS).text for name, one in asked.items()}
    answers = await asyncio.gather(
        *(served.completion(texts[name], one.media, TOKENS) for name, one in asked.items())
    )
    for (name, one), answer in zip(asked.items(), answers, strict=True):
        await served.check_completion(answer, one, name, TOKENS)


async def test_placeholders_without_items_and_items_without_placeholders(served: ServedFamily) -> None:
    modality = main_modality(served.case)
    layout = load_family(read_checkpoint(served.folder)).prompt_layout()
    placeholder = layout.placeholder_text(modality)
    shown = [item(served.case, 1), item(served.case, 2, 1)]
    # Where the one item stands in front of all text, a placeholder means nothing.
    in_front = isinstance(layout, WritesSpeech | TakesTasks)
    for text, media in (
        (f"{placeholder} what is it?", []),
        (f"{placeholder} what is it?", shown),
        *([] if in_front else [(f"{placeholder}{placeholder} what is it?", shown[:1]), ("what?", shown[:1])]),
    ):
        too_many = in_front and bool(media)
        in_its_place = r"At most 1 (audio|image)\(s\)" if too_many else "one (recording|picture)"
        with pytest.raises(
            openai.BadRequestError, match=in_its_place if in_front else "holders for"
        ) as caught:
            await served.completion(text, media, TOKENS)
        assert caught.value.param == (f"multi_modal_data.{modality}" if too_many else "multi_modal_data")


async def test_the_same_prompt_with_another_item_is_no_hit(served: ServedFamily) -> None:
    expected = []
    for seed in (21, 22):
        asked = question([item(served.case, seed), "what is this?"])
        answer = await served.answer(asked.messages, TOKENS)
        await served.check(answer, asked, f"item {seed}", TOKENS)
        expected.append(served.expected(asked, f"item {seed}", TOKENS).new_ids)
    assert expected[0] != expected[1], "the checkpoint answers the same to both: this proves nothing"


async def test_a_follow_up(served: ServedFamily) -> None:
    shown = item(served.case, 31, 1)
    first = await served.answer(question([shown, "what is this?"]).messages, TOKENS)
    before = first.choices[0].message.content
    asked = question([shown, "what is this?"], [before], ["and which colour is it? " * 3])
    answer = await served.answer(asked.messages, TOKENS)
    await served.check(answer, asked, "a follow-up", TOKENS)
    if served.case.shares_prefixes and served.case.follow_ups_share:
        assert answer.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // BLOCK * BLOCK


async def test_precomputed_embeddings_equal_their_item(served: ServedFamily) -> None:
    several = served.case.most_pictures is None or served.case.most_pictures >= 3
    shown = [item(served.case, 41), item(served.case, 42, 1), item(served.case, 43)][: 3 if several else 1]
    asked = question([*shown, "what is this?"])
    # The second item stays one: both kinds in one prompt.
    parts = [one if index == 1 else await embedded(served, one) for index, one in enumerate(shown)]
    answer = await served.answer(question([*parts, "what is this?"]).messages, TOKENS)
    await served.check(answer, asked, "precomputed", TOKENS)


@pytest.mark.parametrize("modality", ["video", "audio"])
async def test_precomputed_embeddings_of_other_modalities(served: ServedFamily, modality: Modality) -> None:
    if not takes(served.case, modality):
        part = {"type": f"{modality}_embeds", f"{modality}_embeds": {f"{modality}_embeds": "AAAA"}}
        with pytest.raises(openai.BadRequestError):
            await served.answer([user(part, "what happens?")], TOKENS)
        return
    shown = item(served.case, 4, 0, modality)
    asked = question([shown, "what happens?"])
    part = await embedded(served, shown)
    answer = await served.answer([user(part, "what happens?")], TOKENS)
    await served.check(answer, asked, f"precomputed {modality}", TOKENS)


async def embedded(served: ServedFamily, item: Media) -> dict[str, Any]:
    """The item's embeddings as a content part, with the fields that the family takes."""
    modality = modality_of(item)
    fields = served.case.facts.embedding_fields[modality].required
    (encoder,) = served.stack.services("encoder")
    return part_from(*await encode(encoder.address, item), modality, fields)


async def test_a_list_of_frames_is_a_video(served: ServedFamily) -> None:
    if not takes(served.case, "video"):
        part = frame_list_part(video(served.case, 3).frames)
        with pytest.raises(openai.BadRequestError):
            await served.answer([user(part, "what happens?")], TOKENS)
        return
    clip = video(served.case, 3)
    asked = question([Video(clip.frames, fps=1.0), "what happens?"])
    answer = await served.answer([user(frame_list_part(clip.frames), "what happens?")], TOKENS)
    await served.check(answer, asked, "a list of frames", TOKENS)


async def test_the_client_encodes_and_sends_back(served: ServedFamily) -> None:
    several = served.case.most_pictures is None or served.case.most_pictures >= 2
    main = main_modality(served.case)
    shown = [as_client_takes_it(item(served.case, 51 + which, which)) for which in range(2)]
    given: dict[str, list[Any]] = {main: shown if several else shown[:1]}
    for modality in served.case.facts.modalities[1:]:
        given[modality] = [as_client_takes_it(item(served.case, 5, 0, modality))]
    (encoder,), (llm,) = served.stack.services("encoder"), served.stack.services("llm")
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)
    async with AsyncClient(encoder=encoder.address, llm=llm.address) as client:
        for modality, items in given.items():
            embeddings = await client.encode_many(items)
            kept = Embeddings.from_bytes(Embeddings.joined(embeddings).to_bytes())
            answers = []
            for values in (items, embeddings, [kept]):
                parts = [{"type": modality, modality: value} for value in values]
                answers.append(
                    await client.chat([{"role": "user", "content": [*parts, "what is it?"]}], greedy)
                )
            first, *others = (answer.outputs[0].token_ids for answer in answers)
            assert all(other == first for other in others), modality


def as_client_takes_it(shown: Media) -> Any:
    """An item as the Python client takes it."""
    if isinstance(shown, Video):
        return shown.frames, {"fps": shown.fps}
    return (shown.samples, shown.rate) if isinstance(shown, Recording) else shown


async def test_nothing_is_held_afterwards(served: ServedFamily) -> None:
    served.stack.wait_until_idle(5)
