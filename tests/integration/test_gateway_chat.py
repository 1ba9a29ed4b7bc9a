"""The gateway as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
import openai
import pytest

from shared.errors import BadMediaError, ContextLengthError, InternalError, OverloadedError
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, Stack, running_stack, until

PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG first").decode()
OTHER_PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG second").decode()


def client(stack: Stack, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=stack.base_url, api_key="key", max_retries=0, **options)  # type: ignore[arg-type]


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def asking(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


async def test_whole_answer() -> None:
    async with running_stack() as stack:
        answer = await client(stack).chat.completions.create(
            model="tiny",
            messages=[{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi"}],
            max_completion_tokens=9,
            temperature=0.5,
            seed=7,
            stop="x",
            logit_bias={"5": -3},
            user="someone",
            metadata={"a": "b"},
            store=False,
        )
        assert answer.object == "chat.completion"
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == "tiny"
        assert answer.system_fingerprint.startswith("fp_")
        choice = answer.choices[0]
        assert (choice.message.role, choice.message.content, choice.finish_reason) == (
            "assistant",
            "Hello!",
            "stop",
        )
        assert choice.logprobs is None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
            10,
            3,
            13,
        )
        assert answer.usage.prompt_tokens_details.cached_tokens == 4
        request = stack.llms[0].requests[0]
        assert [message.role for message in request.conversation.messages] == ["system", "user"]
        assert request.sampling.temperature == 0.5
        assert request.sampling.seed == 7
        assert not request.sampling.HasField("top_p")
        assert dict(request.sampling.logit_bias) == {5: -3.0}
        assert request.stopping.max_token_count == 9
        assert list(request.stopping.stop_strings) == ["x"]


def test_sync_client() -> None:
    async def main() -> None:
        async with running_stack() as stack:

            def ask() -> str | None:
                with openai.OpenAI(base_url=stack.base_url, api_key="key", max_retries=0) as sync_client:
                    stream = sync_client.chat.completions.create(
                        model="org/tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
                    )
                    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

            assert await asyncio.to_thread(ask) == "Hello!"

    asyncio.run(main())


async def raw_events(stack: Stack, **body: object) -> list[str]:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            stack.base_url + "/chat/completions",
            json={"messages": [{"role": "user", "content": "Hi"}], "stream": True, **body},
        )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


async def test_stream_events() -> None:
    async with running_stack() as stack:
        *events, last = await raw_events(stack)
        assert last == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
        assert chunks[0]["object"] == "chat.completion.chunk"
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
        assert all("usage" not in chunk for chunk in chunks)


async def test_stream_usage() -> None:
    async with running_stack() as stack:
        events = await raw_events(stack, stream_options={"include_usage": True})
        chunks = [json.loads(event) for event in events[:-1]]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 13
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])


async def test_choices_and_logprobs_stream_as_whole() -> None:
    async with running_stack() as stack:
        question = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hi"}],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
        }
        whole = await client(stack).chat.completions.create(**question)
        assert [choice.index for choice in whole.choices] == [0, 1]
        first = whole.choices[1].logprobs.content[0]
        assert (first.token, first.logprob, first.bytes) == ("Hel", -0.5, list(b"Hel"))
        assert [other.token for other in first.top_logprobs] == ["Hel0", "Hel1"]

        texts, tokens, reasons = ["", ""], [[], []], [[], []]
        async for chunk in await client(stack).chat.completions.create(**question, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.logprobs:
                    tokens[choice.index] += choice.logprobs.content
                if choice.finish_reason:
                    reasons[choice.index].append(choice.finish_reason)
        assert texts == [choice.message.content for choice in whole.choices]
        assert tokens == [choice.logprobs.content for choice in whole.choices]
        assert reasons == [["stop"], ["stop"]]


async def test_pictures_and_text_in_order() -> None:
    async with running_stack() as stack:
        answer = await client(stack).chat.completions.create(
            model="tiny",
            messages=[
                {"role": "user", "content": ["First", image_part(PICTURE), {"type": "text", "text": "then"}]},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": [{"image_url": OTHER_PICTURE}, image_part(PICTURE)]},
            ],
        )
        assert answer.choices[0].message.content == "Hello!"
        assert answer.usage.prompt_tokens_details.to_dict()["image_tokens"] == 9
        request = stack.llms[0].requests[0]
        parts = [
            part.text if part.HasField("text") else part.media_index
            for message in request.conversation.messages
            for part in message.parts
        ]
        assert parts == ["First", 0, "then", "Yes.", 1, 2]
        keys = [item.key for item in request.media]
        assert keys[0] == keys[2] != keys[1]
        encoder = stack.encoders[0]
        assert sorted(encoder.encoded) == sorted(set(keys))
        assert encoder.payloads[keys[1]] == b"\x89PNG second"


async def test_embeddings_reach_the_encoder_in_both_forms() -> None:
    from protos.media.v1 import media_pb2

    async with running_stack() as stack:
        data = base64.b64encode(b"tensor").decode()
        grid = {"image_embeds": data, "image_grid_thw": [[1, 4, 4]]}
        await client(stack).chat.completions.create(
            model="tiny",
            messages=asking(
                {"type": "image_embeds", "image_embeds": data}, {"type": "image_embeds", "image_embeds": grid}
            ),
        )
        media = stack.llms[0].requests[0].media
        assert all(item.form == media_pb2.MEDIA_FORM_EMBEDDINGS for item in media)
        bare, named = (
            media_pb2.PrecomputedEmbeddings.FromString(stack.encoders[0].payloads[item.key]) for item in media
        )
        assert [(f.name, f.data) for f in bare.fields] == [("image_embeds", b"tensor")]
        assert [(f.name, f.data) for f in named.fields] == [
            ("image_embeds", b"tensor"),
            ("image_grid_thw", b"[[1,4,4]]"),
        ]


async def test_errors_before_the_first_delta_have_their_own_status() -> None:
    refusals = [
        (
            ContextLengthError("This model's maximum context length is 512 tokens."),
            400,
            "context_length_exceeded",
        ),
        (OverloadedError("full", retry_after=3.2), 429, "overloaded"),
        (InternalError("internal error, logged as 1"), 500, "internal_error"),
    ]
    for refusal, status, code in refusals:
        async with running_stack([ScriptedLlm(refuse_with=refusal)]) as stack:
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as caught:
                    await client(stack).chat.completions.create(
                        model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=stream
                    )
                assert caught.value.status_code == status
                assert caught.value.body["code"] == code
                assert caught.value.response.headers.get("retry-after") == ("4" if status == 429 else None)


async def test_error_inside_a_stream_is_an_event() -> None:
    async with running_stack([ScriptedLlm(fail_with=InternalError("broken"), fail_after=2)]) as stack:
        events = await raw_events(stack)
        assert json.loads(events[-2])["error"] == {
            "message": "broken",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
        assert events[-1] == "[DONE]"
        with pytest.raises(openai.APIError, match="broken"):
            async for _ in await client(stack).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
            ):
                pass


async def test_bad_picture_names_its_part_and_ends_the_generation() -> None:
    encoder = ScriptedEncoder(fail_with=BadMediaError("The bytes are no picture."))
    async with running_stack(encoders=[encoder]) as stack:
        with pytest.raises(openai.BadRequestError) as caught:
            await client(stack).chat.completions.create(
                model="tiny", messages=asking({"type": "text", "text": "What?"}, image_part(PICTURE))
            )
        assert caught.value.param == "messages[0].content[1].image_url"
        assert caught.value.code == "invalid_media"
        await until(lambda: stack.llms[0].running == 0 and encoder.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_while_generating(stream: bool) -> None:
    async with running_stack([ScriptedLlm(words=["word "] * 1000, pause_s=0.05)]) as stack:
        llm = stack.llms[0]
        asking_task = asyncio.create_task(
            post_and_hold(stack, {"messages": [{"role": "user", "content": "Hi"}], "stream": stream})
        )
        await until(lambda: llm.running == 1)
        await asyncio.sleep(0.2)
        asking_task.cancel()
        await until(lambda: llm.running == 0, seconds=2.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_while_encoding(stream: bool) -> None:
    async with running_stack(encoders=[ScriptedEncoder(pause_s=30.0)]) as stack:
        asking_task = asyncio.create_task(
            post_and_hold(stack, {"messages": asking(image_part(PICTURE)), "stream": stream})
        )
        await until(lambda: stack.encoders[0].running == 1)
        asking_task.cancel()
        await until(lambda: stack.llms[0].running == 0 and stack.encoders[0].running == 0, seconds=2.0)


async def post_and_hold(stack: Stack, body: dict[str, object]) -> None:
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream("POST", stack.base_url + "/chat/completions", json=body) as answer,
    ):
        async for _ in answer.aiter_bytes():
            pass


async def test_deadline_is_504_and_frees_everything() -> None:
    async with running_stack([ScriptedLlm(pause_s=30.0)], request_timeout_s=0.3) as stack:
        with pytest.raises(openai.APIStatusError) as caught:
            await client(stack).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hi"}]
            )
        assert caught.value.status_code == 504
        assert caught.value.body["code"] == "deadline_exceeded"
        await until(lambda: stack.llms[0].running == 0)


async def test_slow_reader_holds_the_llm_back_and_is_cut_off() -> None:
    words = ["x" * 10_000] * 5000
    async with (
        running_stack([ScriptedLlm(words=words)], request_timeout_s=1.0) as stack,
        httpx.AsyncClient(timeout=30) as http,
        http.stream(
            "POST",
            stack.base_url + "/chat/completions",
            json={"messages": [{"role": "user", "content": "Hi"}], "stream": True},
        ),
    ):
        await until(lambda: stack.llms[0].running == 1)
        await until(lambda: stack.llms[0].running == 0, seconds=5.0)
