"""The watch over an engine that may be stuck."""

from __future__ import annotations

import asyncio

import pytest

from llm_service.engine_watch import EngineWatch

TIMEOUT_S = 0.2


async def silent(watch: EngineWatch, at_work: bool, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await watch.until_silent(lambda: at_work)
    except TimeoutError:
        return False
    return True


async def test_an_engine_at_work_that_does_not_answer_is_noticed() -> None:
    asked: list[None] = []
    watch = EngineWatch(TIMEOUT_S, lambda: asked.append(None))
    watch.heard()
    assert await silent(watch, True, 10 * TIMEOUT_S)
    assert len(asked) == 1


async def test_an_engine_that_answers_is_left_alone() -> None:
    def answer() -> None:
        asyncio.get_running_loop().call_later(0.01, watch.heard)

    watch = EngineWatch(TIMEOUT_S, answer)
    assert not await silent(watch, True, 5 * TIMEOUT_S)


async def test_an_idle_engine_is_not_even_asked() -> None:
    watch = EngineWatch(TIMEOUT_S, lambda: pytest.fail("asked"))
    assert not await silent(watch, False, 3 * TIMEOUT_S)
