"""Greedy answers through all three services equal transformers' `generate()`.

Float32 on the CPU, tiny random-weight checkpoints of every family. The prefill
chunk is 32 tokens, so that nearly every prompt takes several, and the KV pool is
too small for all at once, so that sequences are preempted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.asking import EmbeddingFormat, embeddings_part, picture, template_messages, user
from tests.checkpoints import MODEL_TYPES
from tests.reference import ReferenceModel
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 24
LONG_ANSWER = 96
CHUNK = 32


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation and the pictures in it, in order."""

    messages: list[dict[str, Any]]
    pictures: list[Image.Image]


def case(*parts: Any, system: str | None = None) -> Case:
    messages = [user(*parts)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return Case(messages, [part for part in parts if isinstance(part, Image.Image)])


LONG_TEXT = "tell me about the colours of all things in the picture and where they are " * 6

CASES = {
    "no picture": case("hello, who are you?"),
    "no picture, longer than a chunk": case(LONG_TEXT),
    "one picture": case(picture(1), "what is this?"),
    "one picture after the text": case("look:", picture(2, (60, 140))),
    "three pictures between text": case(
        "first", picture(3), "then", picture(4, (90, 90)), picture(5), "compare"
    ),
    "one picture in a long text": case(LONG_TEXT, picture(6), LONG_TEXT, system="be brief"),
    "the same picture twice": case(picture(7), "and again", picture(7), "the same?"),
}


class Served:
    """A family's checkpoint in the running services and in transformers."""

    def __init__(self, stack: UpStack, reference: ReferenceModel) -> None:
        self.stack = stack
        self.reference = reference
        self.model = "tiny"
        self.client = openai.AsyncOpenAI(
            base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=100
        )
        self._expected: dict[str, list[int]] = {}

    def expected(self, asked: Case, name: str | None = None, tokens: int = TOKENS) -> list[int]:
        """Token ids that transformers generates."""
        if name is not None and name in self._expected:
            return self._expected[name]
        prompt = self.reference.chat(template_messages(asked.messages))
        ids = self.reference.generate(prompt, asked.pictures, tokens, min_new_tokens=tokens)
        if name is not None:
            self._expected[name] = ids
        return ids

    async def answer(self, messages: list[dict[str, Any]], tokens: int = TOKENS) -> Any:
        url = f"{self.stack.url}/v1"
        # One client for each question: every test has an event loop of its own.
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=100) as client:
            return await client.chat.completions.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_completion_tokens=tokens,
                logprobs=True,
                extra_body={"min_tokens": tokens},
            )

    def check(self, answer: Any, ids: list[int]) -> None:
        """The answer's text, number and bytes of tokens are those of `ids`."""
        (choice,) = answer.choices
        decode = self.reference.tokenizer.decode
        assert choice.message.content == decode(ids, skip_special_tokens=True)
        assert answer.usage.completion_tokens == len(ids) == len(choice.logprobs.content)
        for token, token_id in zip(choice.logprobs.content, ids, strict=True):
            # A token that is no whole character is written as U+FFFD by both.
            assert token.token.strip() == decode([token_id]).strip()


@pytest.fixture(scope="module", params=MODEL_TYPES)
def served(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> Iterator[Served]:
    folder = tiny_checkpoint(request.param)
    # 80 blocks of 16 slots: 3 layers, keys and values, 2 heads of 16, 4 bytes.
    pool_gib = 80 * 16 * 3 * 2 * 2 * 16 * 4 / 2**30
    stack = UpStack(
        folder,
        "--served-model-name",
        "tiny",
        "--max-num-batched-tokens",
        str(CHUNK),
        "--block-size",
        "16",
        "--kv-cache-gib",
        f"{pool_gib:.9f}",
    )
    try:
        yield Served(stack, ReferenceModel(folder))
    finally:
        stack.stop()


@pytest.mark.parametrize("name", CASES)
async def test_alone_and_again(served: Served, name: str) -> None:
    asked = CASES[name]
    first = await served.answer(asked.messages)
    again = await served.answer(asked.messages)
    ids = served.expected(asked, name)
    served.check(first, ids)
    served.check(again, ids)
    # All whole blocks of the prompt but the last come from the cache the second time.
    found = again.usage.prompt_tokens_details.cached_tokens
    assert found >= (again.usage.prompt_tokens - 1) // 16 * 16 - 16


async def test_sixteen_at_once_with_preemption(served: Served) -> None:
    # Different from the first word on, so that no blocks are shared, and each grows
    # by several blocks: together they outgrow the pool after they were admitted.
    asked = [
        case(f"{i} {LONG_TEXT[: 90 + 5 * i]}", *([picture(70 + i)] if i % 3 else []), "describe it")
        for i in range(16)
    ]
    before = served.stack.llm_status().preemption_count
    answers = await asyncio.gather(*(served.answer(one.messages, LONG_ANSWER) for one in asked))
    for one, answer in zip(asked, answers, strict=True):
        served.check(answer, served.expected(one, tokens=LONG_ANSWER))
    assert served.stack.llm_status().preemption_count > before


async def test_the_same_prompt_with_another_picture_is_no_hit(served: Served) -> None:
    texts = set()
    for seed in (11, 12):
        asked = case(picture(seed), "what is this?")
        answer = await served.answer(asked.messages)
        served.check(answer, served.expected(asked))
        texts.add(answer.choices[0].message.content)
    assert len(texts) == 2, "the checkpoint answers the same to both: the test would prove nothing"


@pytest.mark.parametrize("form", ["torch", "npy", "safetensors"])
async def test_precomputed_embeddings_equal_their_picture(served: Served, form: EmbeddingFormat) -> None:
    asked = case(picture(21), "what is this?")
    features = dict(served.reference.processor(images=asked.pictures, return_tensors="pt"))
    (rows,) = served.reference.image_features(features)
    grid = features["image_grid_thw"][0].tolist() if "image_grid_thw" in features else None
    part = embeddings_part(rows, form, grid, bare=grid is None and form == "npy")
    answer = await served.answer([user(part, "what is this?")])
    served.check(answer, served.expected(asked, "precomputed"))


async def test_nothing_is_held_afterwards(served: Served) -> None:
    served.stack.wait_until_idle(5)
