"""One stack for all tests that leave it as they found it: tiny Qwen2-VL, two encoders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.reference import ReferenceModel
from tests.stack import START_TIMEOUT_S, UpStack

MODEL = "tiny"
ITEM_LIMIT = 4
CONTEXT = 1024


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting services takes a while on a busy machine: it counts against the first test's time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(START_TIMEOUT_S + 120))


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Callable[[str], Path]) -> Path:
    """The checkpoint that `stack` serves."""
    return tiny_checkpoint("qwen2_vl")


@pytest.fixture(scope="session")
def stack(checkpoint: Path) -> Iterator[UpStack]:
    """The running services."""
    running = UpStack(
        checkpoint,
        "--served-model-name",
        MODEL,
        "--encoders",
        "2",
        "--workers",
        "1",
        "--limit-mm-per-prompt",
        f"image={ITEM_LIMIT}",
        "--max-model-len",
        str(CONTEXT),
        "--kv-cache-gib",
        "0.05",
        "--max-body-mib",
        "8",
        "--max-image-pixels",
        "4000000",
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> ReferenceModel:
    """The same checkpoint in plain transformers."""
    return ReferenceModel(checkpoint)


@pytest.fixture
async def client(stack: UpStack) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, asking the running gateway once for each call."""
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as asking:
        yield asking
