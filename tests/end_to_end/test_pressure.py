"""More requests at once than there is room for, with the bundled model.

Every answer is compared with plain transformers on the same checkpoint.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image

from models.training.drawing import draw
from models.training.scenes import shapes_scene
from tests.asking import data_url, template_messages, user
from tests.reference import ReferenceModel
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

COUNT = 200
TOKENS = 24
QUESTION = "What is in the picture?"


def drawing(seed: int) -> Image.Image:
    """A picture of the kind that the bundled model knows, another for each seed."""
    return draw(shapes_scene(random.Random(seed))).convert("RGB")


@pytest.fixture(scope="module")
def bundled(repository: Path) -> ReferenceModel:
    return ReferenceModel(repository / "models" / "percept-tiny")


@pytest.fixture(scope="module")
def expected(bundled: ReferenceModel) -> Callable[[int], str]:
    """The right answer about a drawing, by plain transformers; each computed once."""
    known: dict[int, str] = {}

    def answer(seed: int) -> str:
        if seed not in known:
            image = drawing(seed)
            prompt = bundled.chat(template_messages([user(image, QUESTION)]))
            ids = bundled.generate(prompt, [image], TOKENS)
            known[seed] = str(bundled.tokenizer.decode(ids, skip_special_tokens=True))
        return known[seed]

    return answer


@pytest.fixture(scope="module")
def roomy() -> Iterator[UpStack]:
    """The bundled model with a newcomer's bounds on requests.

    The KV pool and the tower's batches are so small that the first burst fills
    them: memory that grows after it is a leak.
    """
    running = UpStack("percept-tiny", "--kv-cache-gib", "0.03", "--max-batch-tokens", "2048")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def narrow() -> Iterator[UpStack]:
    """The bundled model with room for few requests at every door."""
    bounds = ["--max-concurrent-requests", "48", "--max-pending-requests", "24", "--max-pending-items", "8"]
    running = UpStack("percept-tiny", *bounds)
    yield running
    running.stop()


def resident_mib(stack: UpStack) -> dict[str, float]:
    """Resident memory of each service with its child processes, in MiB."""
    sizes = {}
    for name in ("gateway", "encoder", "llm"):
        for service in stack.services(name):
            process = psutil.Process(service.pid)
            family = [process, *process.children(recursive=True)]
            sizes[name] = sum(member.memory_info().rss for member in family) / 2**20
    return sizes


async def burst(stack: UpStack, first_seed: int) -> list[Any]:
    """COUNT questions at once, every picture another one; an exception for each that failed."""
    urls = [data_url(drawing(first_seed + i)) for i in range(COUNT)]
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as client:

        async def one(url: str) -> Any:
            part = {"type": "image_url", "image_url": {"url": url}}
            return await client.chat.completions.create(
                model="percept-tiny",
                messages=[user(part, QUESTION)],  # type: ignore[list-item]
                temperature=0,
                max_completion_tokens=TOKENS,
            )

        return await asyncio.gather(*(one(url) for url in urls), return_exceptions=True)


def check(answers: list[Any], first_seed: int, expected: Callable[[int], str]) -> int:
    """Each was answered rightly, or refused with a time to come back. Returns how many were refused."""
    refused = 0
    for i, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            assert isinstance(answer, openai.RateLimitError), repr(answer)
            assert float(answer.response.headers["Retry-After"]) > 0
            refused += 1
        else:
            assert answer.choices[0].message.content == expected(first_seed + i), i
    return refused


async def test_two_hundred_at_once_leave_nothing_behind(
    roomy: UpStack, expected: Callable[[int], str]
) -> None:
    await burst(roomy, 10_000)
    roomy.wait_until_idle(10)
    before = resident_mib(roomy)
    answers = await burst(roomy, 20_000)
    roomy.wait_until_idle(10)
    check(answers, 20_000, expected)
    status = roomy.llm_status()
    assert status.used_block_count == 0
    # Rows that nobody waits for stay as a cache, within their budget.
    assert status.embedding_byte_count <= status.max_embedding_byte_count
    # The second burst leaves what the first left: nothing adds up.
    for name, size in resident_mib(roomy).items():
        assert size < before[name] * 1.1 + 24, f"{name} grew from {before[name]:.0f} to {size:.0f} MiB"


async def test_beyond_the_bounds_requests_are_refused_with_a_time_to_come_back(
    narrow: UpStack, expected: Callable[[int], str]
) -> None:
    answers = await burst(narrow, 20_000)
    refused = check(answers, 20_000, expected)
    assert 0 < refused < COUNT
    narrow.wait_until_idle(10)
    # Whoever comes back later is answered.
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model="percept-tiny",
            messages=[user(drawing(20_000), QUESTION)],  # type: ignore[list-item]
            temperature=0,
            max_completion_tokens=TOKENS,
        )
    assert answer.choices[0].message.content == expected(20_000)
