"""SIGTERM lets requests in flight finish and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest

from tests.asking import picture, user
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 200


async def test_requests_in_flight_finish_and_new_ones_find_nobody(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    stack = await asyncio.to_thread(UpStack, tiny_checkpoint("qwen2_vl"), "--served-model-name", "tiny")
    everything = psutil.Process(stack.process.pid).children(recursive=True)
    try:
        async with openai.AsyncOpenAI(
            base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:

            async def ask(seed: int) -> tuple[int, str | None]:
                stream = await client.chat.completions.create(
                    model="tiny",
                    messages=[user(picture(seed), "what is this?")],  # type: ignore[list-item]
                    max_completion_tokens=TOKENS,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                count, reason = 0, None
                async for chunk in stream:
                    begun.set()
                    count = chunk.usage.completion_tokens if chunk.usage else count
                    reason = next((c.finish_reason for c in chunk.choices if c.finish_reason), reason)
                return count, reason

            begun = asyncio.Event()
            answering = [asyncio.create_task(ask(seed)) for seed in range(4)]
            await begun.wait()
            stack.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(stack.wait_for, "Stopping")
            assert not all(task.done() for task in answering)
            assert await asyncio.gather(*answering) == [(TOKENS, "length")] * 4
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()
        assert await asyncio.to_thread(stack.process.wait, 40) == 0
        assert not psutil.wait_procs(everything, timeout=5)[1]
        assert stack.lines[-1] == "Stopped."
    finally:
        stack.kill()
