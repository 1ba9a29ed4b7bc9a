"""What happens when a client, an encoder or everything goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import httpx
import openai
import pytest

from tests.asking import picture, template_messages, user
from tests.end_to_end.conftest import MODEL
from tests.reference import ReferenceModel
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 8
PING_S = 15.0
"""After so long a channel gives up a peer that does not answer: a ping each 10 s, 5 s for its answer."""
SLACK_S = 45.0
"""For what the other encoder then does on a busy machine."""


def ask(seed: int, size: tuple[int, int] = (112, 84)) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [user(picture(seed, size), "what is this?")],
        "temperature": 0,
        "max_completion_tokens": TOKENS,
        "extra_body": {"min_tokens": TOKENS},
    }


def expected(reference: ReferenceModel, seed: int, size: tuple[int, int]) -> str:
    image = picture(seed, size)
    prompt = reference.chat(template_messages([user(image, "what is this?")]))
    ids = reference.generate(prompt, [image], TOKENS, min_new_tokens=TOKENS)
    return str(reference.tokenizer.decode(ids, skip_special_tokens=True))


async def test_all_are_answered_when_an_encoder_is_killed(
    stack: UpStack, client: openai.AsyncOpenAI, reference: ReferenceModel
) -> None:
    victim = stack.services("encoder")[0]
    # Large pictures, so that decoding takes a while and all are in flight at the kill.
    size = (1600, 1200)
    bodies = [ask(1000 + i, size) for i in range(20)]
    answering = [asyncio.create_task(client.chat.completions.create(**body)) for body in bodies]
    while stack.encoder_status(0).pending_item_count == 0:
        await asyncio.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    assert not all(task.done() for task in answering)
    answers = await asyncio.gather(*answering)
    for i, answer in enumerate(answers):
        assert answer.choices[0].message.content == expected(reference, 1000 + i, size), i
    # The launcher starts another in its place, and it is found again.
    await asyncio.to_thread(stack.wait_for, r"killed by SIGKILL; starting it again")
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient() as http:
        while (await http.get(f"{stack.url}/health")).json()["encoder"]["serving"] < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    stack.wait_until_idle(5)


async def test_all_are_answered_when_an_encoder_stands_still(
    stack: UpStack, client: openai.AsyncOpenAI, reference: ReferenceModel
) -> None:
    """It keeps its connections, and answers nothing: only a ping without an answer tells."""
    victim = stack.services("encoder")[0]
    size = (1600, 1200)
    bodies = [ask(3000 + i, size) for i in range(20)]
    answering = [asyncio.create_task(client.chat.completions.create(**body)) for body in bodies]
    while stack.encoder_status(0).pending_item_count == 0:
        await asyncio.sleep(0.01)
    os.kill(victim.pid, signal.SIGSTOP)
    begin = time.monotonic()
    try:
        assert not all(task.done() for task in answering)
        answers = await asyncio.gather(*answering)
        assert time.monotonic() - begin < PING_S + SLACK_S
        answers.append(await client.chat.completions.create(**ask(3000 + len(bodies), size)))
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    for i, answer in enumerate(answers):
        assert answer.choices[0].message.content == expected(reference, 3000 + i, size), i
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient() as http:
        while (await http.get(f"{stack.url}/health")).json()["encoder"]["serving"] < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    stack.wait_until_idle(10)


@pytest.mark.parametrize("moment", ["before the first token", "while decoding"])
async def test_a_client_that_leaves_frees_everything_within_a_second(
    stack: UpStack, client: openai.AsyncOpenAI, moment: str
) -> None:
    def long(seed: int) -> dict[str, Any]:
        return ask(seed) | {"max_completion_tokens": 900, "extra_body": {"ignore_eos": True}, "stream": True}

    if moment == "while decoding":
        streams = [await client.chat.completions.create(**long(2000 + i)) for i in range(4)]
        for stream in streams:
            await anext(aiter(stream))
        assert stack.llm_status().running_sequence_count == 4
        for stream in streams:
            await stream.close()
    else:
        # Large pictures: decoding them takes longer than it takes to leave.
        bodies = [long(2100 + i) | {"messages": ask(2100 + i, (1600, 1200))["messages"]} for i in range(12)]
        calls = [asyncio.create_task(client.chat.completions.create(**body)) for body in bodies]
        while stack.llm_status().pending_request_count == 0:
            await asyncio.sleep(0.005)
        assert stack.gateway_request_count() > 0
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.to_thread(stack.wait_until_idle, 1.0)


async def test_the_next_request_after_a_lost_client_succeeds(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ask(2200))
    assert answer.choices[0].finish_reason == "length"
