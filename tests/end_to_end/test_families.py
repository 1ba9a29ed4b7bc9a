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
from PIL import Image

from percept import AsyncClient, Embeddings, SamplingParams
from shared.families.catalogue import Modality
from tests.asking import frame_list_part, moving_picture, picture, user
from tests.embedding_parts import encode, part_from
from tests.families import all_cases, takes_videos
from tests.families.case import FamilyCase
from tests.oracle import Oracle, Video
from tests.served_family import BLOCK, Question, ServedFamily, question

pytestmark = pytest.mark.end_to_end

CASES = all_cases()
TOKENS = 16
LONG = "tell me about the colours of all things in the picture and where they are " * 3


def questions_for(case: FamilyCase) -> dict[str, Question]:
    """The questions that a family can be asked, by name: eight, and those with videos."""
    wide, tall = case.sizes
    asked = {
        "no picture": question(["hello, who are you?"]),
        "no picture, longer than a chunk": question([LONG]),
        "a picture before the text": question([picture(1, wide), "what is this?"]),
        "a picture after the text": question(["look:", picture(2, tall)]),
        "a picture in a long text": question([LONG, picture(3, wide), LONG]),
        "three pictures between text": question(
            ["first", picture(4, wide), "then", picture(5, tall), picture(6, wide), "compare"]
        ),
        "three pictures in two messages": question(
            [picture(7, tall), "what is it?"],
            ["a red circle"],
            ["and", picture(8, wide), "and", picture(9, tall), "?"],
        ),
        "the same picture twice": question([picture(10, wide), "and again", picture(10, wide), "the same?"]),
    }
    if takes_videos(case):
        asked["a video"] = question([video(case, 1), "what happens?"])
        if case.mixes_modalities:
            asked["a video and a picture"] = question(["first", picture(11, tall), video(case, 2), "compare"])
    most = case.most_pictures
    return {name: one for name, one in asked.items() if most is None or len(one.media) <= most}


def video(case: FamilyCase, seed: int) -> Video:
    """Frames of one picture that changes, two a second."""
    return Video(moving_picture(seed, case.video_size, case.video_frames), fps=2.0)


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


async def test_the_same_prompt_with_another_picture_is_no_hit(served: ServedFamily) -> None:
    expected = []
    for seed in (21, 22):
        asked = question([picture(seed, served.case.sizes[0]), "what is this?"])
        answer = await served.answer(asked.messages, TOKENS)
        await served.check(answer, asked, f"picture {seed}", TOKENS)
        expected.append(served.expected(asked, f"picture {seed}", TOKENS).new_ids)
    assert expected[0] != expected[1], "the checkpoint answers the same to both: this proves nothing"


async def test_a_follow_up(served: ServedFamily) -> None:
    shown = picture(31, served.case.sizes[1])
    first = await served.answer(question([shown, "what is this?"]).messages, TOKENS)
    before = first.choices[0].message.content
    asked = question([shown, "what is this?"], [before], ["and which colour is it? " * 3])
    answer = await served.answer(asked.messages, TOKENS)
    await served.check(answer, asked, "a follow-up", TOKENS)
    if served.case.shares_prefixes:
        assert answer.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // BLOCK * BLOCK


async def test_precomputed_embeddings_equal_their_picture(served: ServedFamily) -> None:
    wide, tall = served.case.sizes
    several = served.case.most_pictures is None or served.case.most_pictures >= 3
    shown = [picture(41, wide), picture(42, tall), picture(43, wide)][: 3 if several else 1]
    asked = question([*shown, "what is this?"])
    # The second picture stays one: both kinds in one prompt.
    parts = [one if index == 1 else await embedded(served, one) for index, one in enumerate(shown)]
    answer = await served.answer([user(*parts, "what is this?")], TOKENS)
    await served.check(answer, asked, "precomputed", TOKENS)


async def test_precomputed_embeddings_equal_their_video(served: ServedFamily) -> None:
    if not takes_videos(served.case):
        part = {"type": "video_embeds", "video_embeds": {"video_embeds": "AAAA"}}
        with pytest.raises(openai.BadRequestError):
            await served.answer([user(part, "what happens?")], TOKENS)
        return
    asked = question([video(served.case, 4), "what happens?"])
    part = await embedded(served, video(served.case, 4))
    answer = await served.answer([user(part, "what happens?")], TOKENS)
    await served.check(answer, asked, "a precomputed video", TOKENS)


async def embedded(served: ServedFamily, item: Image.Image | Video) -> dict[str, Any]:
    """The item's embeddings as a content part, with the fields that the family takes."""
    modality: Modality = "video" if isinstance(item, Video) else "image"
    fields = served.case.facts.embedding_fields[modality].required
    (encoder,) = served.stack.services("encoder")
    return part_from(*await encode(encoder.address, item), modality, fields)


async def test_a_list_of_frames_is_a_video(served: ServedFamily) -> None:
    if not takes_videos(served.case):
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
    shown: list[Any] = [picture(51 + index, size) for index, size in enumerate(served.case.sizes)]
    given: dict[str, list[Any]] = {"image": shown if several else shown[:1]}
    if takes_videos(served.case):
        clip = video(served.case, 5)
        given["video"] = [(clip.frames, {"fps": clip.fps})]
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


async def test_nothing_is_held_afterwards(served: ServedFamily) -> None:
    served.stack.wait_until_idle(5)
