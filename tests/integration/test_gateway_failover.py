"""Replicas that are full, broken or gone, and what the client sees of it."""

from __future__ import annotations

import asyncio
import base64

import grpc
import httpx
import pytest

from gateway import conductor
from shared.errors import (
    BadMediaError,
    InternalError,
    InvalidRequestError,
    MediaTooLargeError,
    OverloadedError,
    PerceptError,
    UnavailableError,
)
from tests.integration.scripted_services import (
    ScriptedEncoder,
    ScriptedLlm,
    Stack,
    running_stack,
    start_encoder,
    start_llm,
    until,
)


def picture(number: int) -> dict[str, object]:
    data = base64.b64encode(b"picture %d" % number).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def body(*parts: object, **fields: object) -> dict[str, object]:
    content = [*parts, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}], **fields}


async def ask(stack: Stack, question: dict[str, object]) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(stack.base_url + "/chat/completions", json=question)


async def test_encoder_killed_with_requests_in_flight() -> None:
    encoders = [ScriptedEncoder(pause_s=0.5), ScriptedEncoder(pause_s=0.5)]
    async with running_stack(encoders=encoders) as stack:
        asking = [asyncio.create_task(ask(stack, body(picture(n)))) for n in range(20)]
        await until(lambda: sum(encoder.running for encoder in encoders) == 20)
        assert encoders[0].running > 0
        await stack.kill(encoders[0].address)
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert len(set(encoders[1].encoded)) == 20


async def test_encoder_that_breaks_off_is_passed_over() -> None:
    encoders = [ScriptedEncoder(fail_with=UnavailableError("draining")), ScriptedEncoder()]
    async with running_stack(encoders=encoders) as stack:
        answers = [await ask(stack, body(picture(n))) for n in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert len(encoders[1].encoded) == 6


async def test_the_same_picture_goes_to_the_same_encoder() -> None:
    encoders = [ScriptedEncoder() for _ in range(3)]
    llms = [ScriptedLlm()]
    async with running_stack(llms, encoders) as stack:
        for _ in range(2):
            for n in range(9):
                await ask(stack, body(picture(n)))
            llms[0]._arrived.clear()
        assert [len(set(encoder.encoded)) for encoder in encoders] == [
            len(encoder.encoded) // 2 for encoder in encoders
        ]
        assert sum(bool(encoder.encoded) for encoder in encoders) > 1


async def test_full_encoders_are_429_with_retry_after() -> None:
    encoders = [ScriptedEncoder(refuse_with=OverloadedError("full", retry_after=2)) for _ in range(2)]
    async with running_stack(encoders=encoders) as stack:
        answer = await ask(stack, body(picture(1)))
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert all(len(encoder.started) == 1 for encoder in encoders)
        await until(lambda: stack.llms[0].running == 0, seconds=2.0)


async def test_upload_that_is_broken_off_goes_to_another_encoder() -> None:
    encoders = [ScriptedEncoder(refuse_upload_with=UnavailableError("ending")), ScriptedEncoder()]
    async with running_stack(encoders=encoders) as stack:
        asked = 0
        # Which encoder a key prefers depends on the ports; one of a few surely prefers the first.
        while asked < 5 or (not encoders[0].started and asked < 50):
            large = base64.b64encode(bytes([asked]) * 8_000_000).decode()
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{large}"}}
            answer = await ask(stack, body(part))
            assert answer.status_code == 200, answer.text
            asked += 1
        assert encoders[0].started
        assert len(encoders[1].encoded) == asked


async def test_one_full_encoder_does_not_matter() -> None:
    encoders = [ScriptedEncoder(refuse_with=OverloadedError("full")), ScriptedEncoder()]
    async with running_stack(encoders=encoders) as stack:
        answers = await asyncio.gather(*(ask(stack, body(picture(n))) for n in range(6)))
        assert {answer.status_code for answer in answers} == {200}


async def test_no_encoder_is_503_and_text_still_works() -> None:
    async with running_stack() as stack:
        await stack.kill(stack.encoders[0].address)
        answer = await ask(stack, body(picture(1)))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert (await ask(stack, body())).status_code == 200


async def test_encoder_that_restarts_within_the_attempts() -> None:
    async with running_stack() as stack:
        address = stack.encoders[0].address
        await stack.kill(address)
        asking = asyncio.create_task(ask(stack, body(picture(1))))
        await asyncio.sleep(0.3)
        server = await start_encoder(ScriptedEncoder(), address)
        assert (await asking).status_code == 200
        await server.drain(0)


async def test_media_asked_for_again_is_delivered_again() -> None:
    async with running_stack([ScriptedLlm(ask_twice=True, pause_s=0.1)]) as stack:
        assert (await ask(stack, body(picture(1)))).status_code == 200
        assert len(stack.encoders[0].encoded) == 2


async def test_full_or_gone_llm_is_passed_over_before_the_first_delta() -> None:
    for refusal in (OverloadedError("full"), UnavailableError("draining")):
        llms = [ScriptedLlm(refuse_with=refusal), ScriptedLlm()]
        async with running_stack(llms) as stack:
            for n in range(6):
                assert (await ask(stack, body(picture(n), user=str(n)))).status_code == 200
            assert len(llms[1].requests) == 6


async def test_llm_that_dies_while_it_waits_for_media() -> None:
    llms = [ScriptedLlm(), ScriptedLlm()]
    async with running_stack(llms, [ScriptedEncoder(pause_s=0.5)]) as stack:
        asking = asyncio.create_task(ask(stack, body(picture(1))))
        await until(lambda: stack.encoders[0].running == 1)
        dying = next(llm for llm in llms if llm.running)
        await stack.kill(dying.address)
        assert (await asking).status_code == 200


async def test_llm_that_dies_after_the_first_delta_is_an_error_event() -> None:
    llms = [ScriptedLlm(words=["a"] * 50, pause_s=0.05), ScriptedLlm(words=["b"])]
    async with running_stack(llms) as stack:
        texts = [f"text {n}" for n in range(8)]
        async with httpx.AsyncClient(timeout=30) as http:
            for text in texts:
                question = {"messages": [{"role": "user", "content": text}], "stream": True}
                async with http.stream("POST", stack.base_url + "/chat/completions", json=question) as answer:
                    lines = answer.aiter_lines()
                    while '"content":"a"' not in (line := await anext(lines)) and '"b"' not in line:
                        pass
                    if '"b"' in line:
                        continue
                    await stack.kill(llms[0].address)
                    rest = [line async for line in lines if line]
                    assert '"code":"unavailable"' in rest[-2]
                    assert rest[-1] == "data: [DONE]"
                    return
    pytest.fail("no conversation went to the first replica")


async def test_no_llm_at_start_then_one() -> None:
    late = ScriptedLlm()
    server = await start_llm(late)
    await server.drain(0)
    async with running_stack([], llm=(late.address,)) as stack, httpx.AsyncClient() as http:
        assert (await http.get(stack.url + "/health")).status_code == 503
        assert (await ask(stack, body())).status_code == 503
        assert (await http.get(stack.base_url + "/models")).status_code == 503
        server = await start_llm(late, late.address)
        await until(lambda: bool(stack.gateway.llms.serving))
        assert (await http.get(stack.url + "/health")).status_code == 200
        assert (await ask(stack, body())).status_code == 200
        await server.drain(0)


async def test_conversation_stays_on_its_replica() -> None:
    llms = [ScriptedLlm() for _ in range(3)]
    async with running_stack(llms) as stack:
        for n in range(9):
            turns = [{"role": "user", "content": f"Start {n}"}]
            for turn in range(3):
                await ask(stack, {"messages": turns})
                turns += [
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": f"More {turn}"},
                ]
        for llm in llms:
            firsts = [request.conversation.messages[0].parts[0].text for request in llm.requests]
            assert all(firsts.count(first) == 3 for first in firsts)
        assert sum(bool(llm.requests) for llm in llms) > 1


async def test_too_many_requests_at_once() -> None:
    async with running_stack([ScriptedLlm(pause_s=0.2)], max_concurrent_requests=2) as stack:
        answers = await asyncio.gather(*(ask(stack, body()) for _ in range(6)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses.count(200) == 2
        assert statuses.count(429) == 4
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert (await ask(stack, body())).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_channel_that_is_closed_under_a_call_ends_its_request(stream: bool) -> None:
    async with running_stack([ScriptedLlm(pause_s=30.0)], request_timeout_s=20.0) as stack:
        asking = asyncio.create_task(ask(stack, body(stream=stream)))
        await until(lambda: stack.llms[0].running == 1)
        await stack.gateway.llms.replicas[0].channel.close()
        async with asyncio.timeout(5):
            assert (await asking).status_code == 503


async def test_an_encoders_channel_that_is_closed_under_a_call() -> None:
    encoders = [ScriptedEncoder(pause_s=1.0), ScriptedEncoder(pause_s=1.0)]
    async with running_stack(encoders=encoders) as stack:
        asking = asyncio.create_task(ask(stack, body(picture(1))))
        await until(lambda: any(encoder.running for encoder in encoders))
        busy = next(encoder for encoder in encoders if encoder.running)
        for replica in stack.gateway.encoders.replicas:
            if replica.address == busy.address:
                await replica.channel.close()
        assert (await asking).status_code == 200
        assert [encoder.encoded != [] for encoder in encoders].count(True) == 1


async def elsewhere(target: str) -> frozenset[str]:
    return frozenset({"127.0.0.1:9"})


async def test_a_replica_that_left_its_name_finishes_its_calls() -> None:
    async with running_stack([ScriptedLlm(pause_s=0.3)]) as stack:
        asking = asyncio.create_task(ask(stack, body()))
        await until(lambda: stack.llms[0].running == 1)
        (replica,) = stack.gateway.llms.replicas
        stack.gateway.llms._resolve = elsewhere
        await stack.gateway.llms._find()
        assert replica not in stack.gateway.llms.replicas
        assert not asking.done()
        assert (await asking).status_code == 200
        await until(lambda: replica.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN, seconds=2.0)


async def test_a_replica_that_left_its_name_is_not_waited_for_for_ever() -> None:
    async with running_stack([ScriptedLlm(pause_s=60.0)]) as stack:
        asking = asyncio.create_task(ask(stack, body()))
        await until(lambda: stack.llms[0].running == 1)
        stack.gateway.llms._longest_call_s = 0.2
        stack.gateway.llms._resolve = elsewhere
        await stack.gateway.llms._find()
        async with asyncio.timeout(20):
            assert (await asking).status_code == 503


@pytest.mark.parametrize(
    ("fault", "status", "blamed"),
    [
        (BadMediaError("The bytes are no picture."), 400, True),
        (MediaTooLargeError("too many pixels"), 413, True),
        (OverloadedError("full"), 429, False),
        (InternalError("internal error, logged as 1"), 500, False),
        (InvalidRequestError("image_embeds must be (rows, 8)", param="header.tensors"), 500, False),
        (InvalidRequestError("not one of ours", param="delivery_address"), 500, False),
    ],
)
async def test_only_what_is_wrong_with_a_picture_names_it(
    fault: PerceptError, status: int, blamed: bool
) -> None:
    async with running_stack(encoders=[ScriptedEncoder(fail_with=fault)]) as stack:
        answer = await ask(stack, body(picture(1)))
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["param"] == ("messages[0].content[0].image_url" if blamed else None)
        assert fault.message in error["message"]


async def test_what_an_llm_says_of_a_push_is_no_field_of_the_request() -> None:
    refusal = InvalidRequestError("an item of 9 bytes exceeds the embedding store", param="header.tensors")
    async with running_stack([ScriptedLlm(refuse_with=refusal)]) as stack:
        answer = await ask(stack, body())
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_whole_with_its_last_frame_whatever_the_calls_end_takes(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "_ENDING_S", 0.5)
    llm = ScriptedLlm(linger_s=60)
    async with running_stack([llm]) as stack:
        answer = await asyncio.wait_for(ask(stack, body(n=2, stream=stream)), 30)
        assert answer.status_code == 200
        assert "Hel" in answer.text and answer.text.count("stop") == 4
        assert llm.running == 1, "the call has a moment to end by itself"
        # Nor does it stay for ever where the service never ends it.
        await until(lambda: llm.running == 0, seconds=10.0)
        assert (await ask(stack, body())).status_code == 200
