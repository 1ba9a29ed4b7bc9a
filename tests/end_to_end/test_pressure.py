"""More requests at once than there is room for."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import psutil
import pytest

from tests.asking import data_url, picture, template_messages, user
from tests.end_to_end.conftest import MODEL
from tests.reference import ReferenceModel
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

COUNT = 200
TOKENS = 8
QUESTION = "what is this?"


def resident_mib(stack: UpStack) -> dict[str, float]:
    """Resident memory of each service with its child processes, in MiB."""
    sizes = {}
    for name in ("gateway", "encoder", "llm"):
        for i, service in enumerate(stack.services(name)):
            process = psutil.Process(service.pid)
            family = [process, *process.children(recursive=True)]
            sizes[f"{name}-{i}"] = sum(member.memory_info().rss for member in family) / 2**20
    return sizes


async def burst(client: openai.AsyncOpenAI, first_seed: int) -> list[Any]:
    """COUNT questions at once, every picture another one."""
    urls = [data_url(picture(first_seed + i)) for i in range(COUNT)]

    async def one(url: str) -> Any:
        part = {"type": "image_url", "image_url": {"url": url}}
        return await client.chat.completions.create(
            model=MODEL,
            messages=[user(part, QUESTION)],  # type: ignore[list-item]
            temperature=0,
            max_completion_tokens=TOKENS,
            extra_body={"min_tokens": TOKENS},
        )

    return await asyncio.gather(*(one(url) for url in urls), return_exceptions=True)


async def test_two_hundred_at_once_are_answered_rightly_or_refused(
    stack: UpStack, client: openai.AsyncOpenAI, reference: ReferenceModel
) -> None:
    await burst(client, 10_000)
    stack.wait_until_idle(10)
    before = resident_mib(stack)
    answers = await burst(client, 20_000)
    stack.wait_until_idle(10)

    refused = [answer for answer in answers if isinstance(answer, Exception)]
    for error in refused:
        assert isinstance(error, openai.RateLimitError), repr(error)
        assert float(error.response.headers["Retry-After"]) > 0
    assert len(refused) < COUNT
    for i, answer in enumerate(answers):
        if isinstance(answer, Exception):
            continue
        image = picture(20_000 + i)
        prompt = reference.chat(template_messages([user(image, QUESTION)]))
        ids = reference.generate(prompt, [image], TOKENS, min_new_tokens=TOKENS)
        assert answer.choices[0].message.content == reference.tokenizer.decode(
            ids, skip_special_tokens=True
        ), i

    status = stack.llm_status()
    assert status.used_block_count == 0
    # Rows that nobody waits for stay as a cache, within their budget.
    assert status.embedding_byte_count <= status.max_embedding_byte_count
    # The second burst leaves what the first left: nothing adds up.
    for name, size in resident_mib(stack).items():
        assert size < before[name] * 1.1 + 24, f"{name} grew from {before[name]:.0f} to {size:.0f} MiB"
