"""POST /v1/completions as OpenAI's own client sees it, and as the services behind it do."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import openai
import pytest

from protos.media.v1 import media_pb2
from shared.errors import InternalError, InvalidRequestError, OverloadedError
from tests.integration.scripted_services import ScriptedLlm, Stack, running_stack, until

PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG first").decode()
SONG = base64.b64encode(b"RIFF\0\0\0\0WAVE song").decode()
HEARD = {"data": SONG, "format": "wav"}
HEARD_AT = "multi_modal_data.audio.data"
ALL = {media_pb2.MODALITY_IMAGE: 3, media_pb2.MODALITY_AUDIO: 2}


def client(stack: Stack) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=stack.base_url, api_key="key", max_retries=0)


async def ask(stack: Stack, prompt: Any = "Once", **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in list(fields) if name in _BEYOND_OPENAI}
    return await client(stack).completions.create(model="tiny", prompt=prompt, extra_body=own, **fields)


_BEYOND_OPENAI = {"multi_modal_data", "encoder_prompt", "decoder_prompt", "min_tokens", "mm_processor_kwargs"}


async def test_whole_answer() -> None:
    async with running_stack() as stack:
        answer = await ask(
            stack, temperature=0.5, top_p=0.25, seed=7, stop=["x"], logit_bias={"5": -3}, max_tokens=9,
            presence_penalty=1, frequency_penalty=-1, user="someone", best_of=1, suffix="",
        )  # fmt: skip
        assert (answer.object, answer.model) == ("text_completion", "tiny")
        assert answer.id.startswith("cmpl-")
        (choice,) = answer.choices
        assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (
            0,
            "Hello!",
            "stop",
            None,
        )
        assert answer.usage.total_tokens == 13
        (request,) = stack.llms[0].requests
        assert request.text == "Once"
        assert (request.sampling.temperature, request.sampling.top_p, request.sampling.seed) == (0.5, 0.25, 7)
        assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (1, -1)
        assert dict(request.sampling.logit_bias) == {5: -3.0}
        assert (list(request.stopping.stop_strings), request.stopping.max_token_count) == (["x"], 9)
        assert not request.HasField("top_logprobs")
        assert not request.HasField("encoder_prompt")


async def test_sixteen_tokens_where_nothing_is_said() -> None:
    async with running_stack() as stack:
        await ask(stack)
        await ask(stack, [5, 6, 7])
        text, ids = stack.llms[0].requests
        assert text.stopping.max_token_count == ids.stopping.max_token_count == 16
        assert list(ids.token_ids.ids) == [5, 6, 7]


async def test_many_prompts_with_several_choices_each() -> None:
    async with running_stack() as stack:
        answer = await ask(stack, ["a", "b", "c"], n=2)
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert {choice.text for choice in answer.choices} == {"Hello!"}
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (30, 18)
        assert answer.usage.prompt_tokens_details.cached_tokens == 12
        assert sorted(request.text for request in stack.llms[0].requests) == ["a", "b", "c"]
        await ask(stack, [[1, 2], [3]])
        ids = [list(request.token_ids.ids) for request in stack.llms[0].requests[3:]]
        assert sorted(ids) == [[1, 2], [3]]


async def test_more_prompts_than_run_at_once_are_all_answered_in_order() -> None:
    async with running_stack([ScriptedLlm(pause_s=0.01)]) as stack:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, stack.llms[0].running)
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        answer = await ask(stack, [f"prompt {index}" for index in range(40)], echo=True)
        watching.cancel()
        assert [choice.text for choice in answer.choices] == [f"prompt {index}Hello!" for index in range(40)]
        assert 1 < most <= 16


async def test_streamed_as_whole() -> None:
    async with running_stack() as stack:
        asked: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "echo": True}
        whole = await ask(stack, **asked)
        texts: dict[int, str] = dict.fromkeys(range(4), "")
        reasons: dict[int, list[str]] = {index: [] for index in range(4)}
        usages = []
        options = {"include_usage": True}
        async for chunk in await ask(stack, **asked, stream=True, stream_options=options):
            assert chunk.object == "text_completion"
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
            if not chunk.choices:
                usages.append(chunk.usage)
        assert (
            list(texts.values())
            == [choice.text for choice in whole.choices]
            == ["aHello!"] * 2 + ["bHello!"] * 2
        )
        assert list(reasons.values()) == [["stop"]] * 4
        assert usages == [whole.usage]


async def test_events_end_with_done_and_say_no_usage_unasked() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        answer = await http.post(f"{stack.base_url}/completions", json={"prompt": "Once", "stream": True})
        *events, last = answer.text.removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", "!", ""]
        assert all("usage" not in chunk for chunk in chunks)
        assert len({chunk["id"] for chunk in chunks}) == 1


async def test_logprobs_have_the_legacy_shape_streamed_and_whole() -> None:
    words = ["Hé", "l", "o"]
    async with running_stack([ScriptedLlm(words=words)]) as stack:
        answer = await ask(stack, logprobs=2)
        found = answer.choices[0].logprobs
        assert found.tokens == words
        assert found.token_logprobs == [-0.5] * 3
        assert found.text_offset == [0, 2, 3]
        assert found.top_logprobs[1] == {"l": -0.5, "l0": -0.5, "l1": -1.5}
        assert stack.llms[0].requests[0].top_logprobs == 2
        pieces = [
            choice.logprobs
            async for chunk in await ask(stack, logprobs=2, stream=True)
            for choice in chunk.choices
            if choice.logprobs
        ]
        assert [offset for piece in pieces for offset in piece.text_offset] == [0, 2, 3]
        assert [token for piece in pieces for token in piece.tokens] == words
        none = await ask(stack, logprobs=0)
        assert none.choices[0].logprobs.top_logprobs == [{word: -0.5} for word in words]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x<image>", "multi_modal_data": {"image": PICTURE, "audio": [HEARD]}},
        {"prompt": {"prompt": "x<image>", "multi_modal_data": {"image": [{"url": PICTURE}], "audio": HEARD}}},
        {"prompt": [{"prompt": "x<image>", "multi_modal_data": {"image": [PICTURE], "audio": HEARD}}]},
    ],
    ids=["beside the prompt", "an object", "a list of objects"],
)  # fmt: skip
async def test_implicit_prompts_with_media(body: dict[str, Any]) -> None:
    async with running_stack([ScriptedLlm(limits=ALL)]) as stack:
        await ask(stack, **body)
        (request,) = stack.llms[0].requests
        assert request.text == "x<image>"
        assert not request.HasField("encoder_prompt")
        payloads = [stack.encoders[0].payloads[item.key] for item in request.media]
        assert payloads == [b"\x89PNG first", base64.b64decode(SONG)]


EXPLICIT = {
    "encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": {"data": SONG, "format": "wav"}}},
    "decoder_prompt": "<|startoftranscript|>",
}


@pytest.mark.parametrize("body", [{"prompt": EXPLICIT}, {"prompt": None, **EXPLICIT}, {"prompt": [EXPLICIT]}])
async def test_explicit_prompts(body: dict[str, Any]) -> None:
    async with running_stack([ScriptedLlm(limits=ALL)]) as stack:
        await ask(stack, **body)
        (request,) = stack.llms[0].requests
        assert request.text == "<|startoftranscript|>"
        assert request.HasField("encoder_prompt")
        assert request.encoder_prompt.text == ""
        assert [stack.encoders[0].payloads[item.key] for item in request.media] == [base64.b64decode(SONG)]


async def test_explicit_prompts_as_token_ids_and_without_media() -> None:
    async with running_stack() as stack:
        await ask(stack, {"encoder_prompt": "read", "decoder_prompt": None})
        await ask(stack, {"encoder_prompt": {"prompt_token_ids": [4, 5]}, "decoder_prompt": [7]})
        text, ids = stack.llms[0].requests
        assert (text.encoder_prompt.text, text.text) == ("read", "")
        assert (list(ids.encoder_prompt.token_ids.ids), list(ids.token_ids.ids)) == ([4, 5], [7])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "prompt"),
    "null": ({"prompt": None}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty list in a list": ({"prompt": [[]]}, "prompt[0]"),
    "mixed": ({"prompt": ["a", 5]}, "prompt[1]"),
    "true is no token": ({"prompt": [[1, True]]}, "prompt[0]"),
    "a fraction is no token": ({"prompt": [[1, 2.5]]}, "prompt[0]"),
    "a negative token": ({"prompt": [1, -2]}, "prompt[1]"),
    "a huge token": ({"prompt": [[2**31]]}, "prompt[0][0]"),
    "too many": ({"prompt": ["a"] * 129}, "prompt"),
    "an object without a prompt": ({"prompt": {"multi_modal_data": {}}}, "prompt.prompt"),
    "two prompts in one": ({"prompt": {"prompt": "a", "prompt_token_ids": [1]}}, "prompt"),
    "an unknown key": ({"prompt": {"prompt": "a", "speed": 1}}, "prompt.speed"),
    "an unknown modality": ({"prompt": "a", "multi_modal_data": {"smell": "x"}}, "multi_modal_data.smell"),
    "media of no form": ({"prompt": "a", "multi_modal_data": {"image": 5}}, "multi_modal_data.image"),
    "an empty URL": ({"prompt": "a", "multi_modal_data": {"image": [""]}}, "multi_modal_data.image[0]"),
    "no URL": ({"prompt": "a", "multi_modal_data": {"image": "/etc/passwd"}}, "multi_modal_data.image"),
    "no base64": ({"prompt": "a", "multi_modal_data": {"audio": {"data": "@"}}}, HEARD_AT),
    "media for a list": ({"prompt": ["a"], "multi_modal_data": {"image": PICTURE}}, "prompt"),
    "media in a decoder's prompt": (
        {"prompt": {"encoder_prompt": "", "decoder_prompt": {"multi_modal_data": {}}}},
        "prompt.decoder_prompt.multi_modal_data",
    ),
    "both kinds": ({"prompt": "a", "encoder_prompt": "b"}, "prompt"),
    "media beside both": ({"encoder_prompt": "b", "multi_modal_data": {}}, "multi_modal_data"),
    "an encoder's prompt of no form": ({"encoder_prompt": [True]}, "encoder_prompt"),
    "best_of": ({"prompt": "a", "best_of": 3}, "best_of"),
    "suffix": ({"prompt": "a", "suffix": "b"}, "suffix"),
    "echo with logprobs": ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "too many logprobs": ({"prompt": "a", "logprobs": 21}, "logprobs"),
    "logprobs as in chat": ({"prompt": "a", "logprobs": True}, "logprobs"),
    "five stops": ({"prompt": "a", "stop": list("abcde")}, "stop"),
    "messages": ({"prompt": "a", "messages": []}, "messages"),
    "options without a stream": ({"prompt": "a", "stream_options": {}}, "stream_options"),
}  # fmt: skip


async def test_wrong_requests_name_what_is_wrong() -> None:
    async with running_stack([ScriptedLlm(limits=ALL)]) as stack, httpx.AsyncClient() as http:
        for name, (body, param) in WRONG.items():
            answer = await http.post(f"{stack.base_url}/completions", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param), (name, error)
            assert error["type"] == "invalid_request_error"
            assert error["message"]
        assert (await ask(stack)).choices[0].text == "Hello!"
        assert len(stack.llms[0].requests) == 1


async def test_what_a_model_lacks_and_how_much_it_takes() -> None:
    async with running_stack(limit_mm_per_prompt="image=1") as stack:
        with pytest.raises(openai.BadRequestError) as deaf:
            await ask(stack, "a", multi_modal_data={"audio": {"data": SONG}})
        assert (deaf.value.param, deaf.value.code) == ("multi_modal_data.audio.data", "unsupported_media")
        with pytest.raises(openai.BadRequestError) as many:
            await ask(stack, "a", multi_modal_data={"image": [PICTURE] * 2})
        assert (many.value.param, many.value.code) == ("multi_modal_data.image", "too_many_images")
        raw = {"prompt": "", "multi_modal_data": {"image": [PICTURE] * 2}}
        two = {"encoder_prompt": raw, "decoder_prompt": ""}
        for body, path in (
            (two, "encoder_prompt"),
            ({"prompt": raw}, "prompt"),
            ({"prompt": two}, "prompt.encoder_prompt"),
            ({"prompt": [two]}, "prompt[0].encoder_prompt"),
        ):
            async with httpx.AsyncClient() as http:
                error = (await http.post(f"{stack.base_url}/completions", json=body)).json()["error"]
            assert (error["param"], error["code"]) == (f"{path}.multi_modal_data.image", "too_many_images")
        with pytest.raises(openai.NotFoundError):
            await client(stack).completions.create(model="another", prompt="a")


@pytest.mark.parametrize(
    ("refusal", "status", "param"),
    [
        (InvalidRequestError("placeholders", param="media"), 400, "multi_modal_data"),
        (InvalidRequestError("long", param="stopping.max_token_count"), 400, "max_tokens"),
        (InvalidRequestError("none", param="encoder_prompt"), 400, "encoder_prompt"),
        (OverloadedError("full", retry_after=1), 429, None),
        (InternalError("broken"), 500, None),
    ],
)
async def test_refusals_have_the_requests_own_names(refusal: Any, status: int, param: str | None) -> None:
    async with running_stack([ScriptedLlm(refuse_with=refusal)]) as stack:
        for prompt in ("a", ["a", "b"]):
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as caught:
                    await ask(stack, prompt, stream=stream)
                assert (caught.value.status_code, caught.value.param) == (status, param)
        await until(lambda: stack.llms[0].running == 0)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([1, 2], "prompt[1]"),
        ([[1, 2], [3, 4]], "prompt[{}][1]"),
        ({"encoder_prompt": "", "decoder_prompt": [1, 2]}, "prompt.decoder_prompt[1]"),
    ],
)
async def test_a_wrong_token_has_its_prompts_place(prompt: Any, param: str) -> None:
    unknown = InvalidRequestError("unknown", param="token_ids[1]")
    async with running_stack([ScriptedLlm(refuse_with=unknown)]) as stack:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(stack, prompt)
        # Both were refused, and either may have been the first.
        assert caught.value.param in {param.format(index) for index in range(2)}


async def test_an_error_inside_a_stream_is_an_event_and_ends_the_other_prompts() -> None:
    async with running_stack([ScriptedLlm(fail_with=InternalError("broken"), fail_after=2)]) as stack:
        with pytest.raises(openai.APIError, match="broken"):
            async for _ in await ask(stack, ["a", "b", "c"], stream=True):
                pass
        await until(lambda: stack.llms[0].running == 0, seconds=2.0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]], ids=["one", "three"])
async def test_a_client_that_leaves_frees_everything(prompt: Any, stream: bool) -> None:
    async with running_stack([ScriptedLlm(words=["word "] * 1000, pause_s=0.05)]) as stack:
        llm = stack.llms[0]
        body = {"prompt": prompt, "stream": stream}

        async def hold() -> None:
            async with (
                httpx.AsyncClient(timeout=30) as http,
                http.stream("POST", stack.base_url + "/completions", json=body) as answer,
            ):
                async for _ in answer.aiter_bytes():
                    pass

        asking = asyncio.create_task(hold())
        await until(lambda: llm.running == (1 if prompt == "a" else 3))
        await asyncio.sleep(0.2)
        asking.cancel()
        await until(lambda: llm.running == 0, seconds=2.0)
        await asyncio.gather(asking, return_exceptions=True)


async def test_the_description_has_the_body() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        described = (await http.get(stack.url + "/openapi.json")).json()
        assert "/v1/completions" in described["paths"]
        assert {"prompt", "echo", "max_tokens"} <= set(
            described["components"]["schemas"]["CompletionRequest"]["properties"]
        )
