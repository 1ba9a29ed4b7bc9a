"""The official openai client, sync and async, against the running gateway."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.asking import picture, user
from tests.end_to_end.conftest import CONTEXT, ITEM_LIMIT, MODEL
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [user(picture(31), "what is this?")],
    "temperature": 0,
    "max_completion_tokens": 12,
}


@pytest.fixture
def sync_client(stack: UpStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_whole_and_streamed_answers_are_the_same(sync_client: openai.OpenAI) -> None:
    whole = sync_client.chat.completions.create(**ASK)
    stream = sync_client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    *deltas, last = chunks
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == whole.choices[0].message.content
    )
    assert deltas[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in deltas if chunk.choices[0].finish_reason] == [
        "length"
    ]
    assert last.choices == []
    assert last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_client_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True)
    finishes = []
    async for chunk in stream:
        assert chunk.usage is None
        finishes += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
    assert finishes == ["length"]


def test_several_choices_with_a_seed_are_repeatable(sync_client: openai.OpenAI) -> None:
    asked = {**ASK, "temperature": 1.5, "n": 3, "seed": 7}
    first, second = (sync_client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1


def test_stop_strings_end_the_answer_before_them(sync_client: openai.OpenAI) -> None:
    text = sync_client.chat.completions.create(**ASK).choices[0].message.content
    assert text is not None
    stop = next(text[i : i + 3] for i in range(2, len(text)) if text.find(text[i : i + 3]) == i)
    (choice,) = sync_client.chat.completions.create(**ASK, stop=[stop]).choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == text[: text.index(stop)]


def test_log_probabilities_come_with_their_alternatives(sync_client: openai.OpenAI) -> None:
    (choice,) = sync_client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 12
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0


def test_models_can_be_listed_and_retrieved(sync_client: openai.OpenAI) -> None:
    assert [model.id for model in sync_client.models.list()] == [MODEL]
    assert sync_client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        sync_client.models.retrieve("another")
    assert caught.value.code == "model_not_found"


def test_mistakes_are_the_clients_own_exceptions(sync_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sync_client.chat.completions.create(**{**ASK, "model": "another"})
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="maximum context length") as long:
        sync_client.chat.completions.create(**{**ASK, "messages": [user("word " * (CONTEXT + 100))]})
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        pictures = [picture(i) for i in range(ITEM_LIMIT + 1)]
        sync_client.chat.completions.create(**{**ASK, "messages": [user(*pictures, "compare")]})
