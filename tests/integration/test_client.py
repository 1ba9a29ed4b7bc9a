"""The client against services that follow a script: what it says, tries again and lets go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from percept.client import AsyncClient, SamplingParams
from protos.media.v1 import media_pb2
from shared.errors import (
    BadMediaError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UnknownModelError,
)
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, start_encoder, start_llm, until
from tests.stack import free_port

PICTURE = {"prompt": "<image>", "multi_modal_data": {"image": b"a picture"}}


@asynccontextmanager
async def services(
    llms: Sequence[ScriptedLlm] = (), encoders: Sequence[ScriptedEncoder] = (), **settings: Any
) -> AsyncIterator[AsyncClient]:
    async with AsyncExitStack() as exits:
        for llm in llms:
            exits.push_async_callback((await start_llm(llm)).drain, 0)
        for encoder in encoders:
            exits.push_async_callback((await start_encoder(encoder)).drain, 0)
        addresses = {
            "llm": [llm.address for llm in llms] or [f"127.0.0.1:{free_port()}"],
            "encoder": [encoder.address for encoder in encoders] or [f"127.0.0.1:{free_port()}"],
        }
        yield await exits.enter_async_context(
            AsyncClient(**{"max_concurrency": 8, "timeout_s": 30.0, **addresses, **settings})
        )


async def test_a_picture_goes_to_the_encoder_and_never_to_the_llm() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder()
    async with services([llm], [encoder]) as client:
        (answer,) = await client.generate(PICTURE, SamplingParams(n=2, logprobs=1))
        assert [output.text for output in answer.outputs] == ["Hello!"] * 2
        assert [output.token_ids for output in answer.outputs] == [[0, 1, 2]] * 2
        assert answer.outputs[0].finish_reason == "stop" and answer.text == "Hello!"
        logprobs = answer.outputs[1].logprobs
        assert logprobs is not None and [one.chosen.text for one in logprobs] == ["Hel", "lo", "!"]
        assert answer.usage is not None and answer.usage.image_tokens == 3
        assert answer.timings is not None and answer.timings.decode_s == 0.3
        (key,) = encoder.encoded
        assert encoder.payloads[key] == b"a picture" and llm.delivered == [key]
        assert answer.prompt == "<image>" and answer.prompt_token_ids is None
        await client.generate({**PICTURE, "multi_modal_data": {"image": [b"a picture"] * 2}})
        assert encoder.encoded == [key]


BOTH = {media_pb2.MODALITY_IMAGE: 8, media_pb2.MODALITY_AUDIO: 8}
VISION = '{"audio_projection_mode":"vision"}'


@pytest.mark.parametrize(
    ("family", "data", "own", "expected"),
    [
        ("phi4_multimodal", {"image": b"a", "audio": [b"b", b"c"]}, {}, ["", VISION, VISION]),
        ("phi4_multimodal", {"audio": b"b"}, {}, [""]),
        (
            "phi4_multimodal",
            {"image": b"a", "audio": b"b"},
            {"audio": {"audio_projection_mode": "speech"}},
            ["", '{"audio_projection_mode":"speech"}'],
        ),
        ("qwen2_5_omni", {"image": b"a", "audio": b"b"}, {}, ["", ""]),
    ],
    ids=["both", "heard alone", "said", "another family"],
)
async def test_recordings_beside_pictures_are_processed_as_the_gateway_does(
    family: str, data: dict[str, Any], own: dict[str, Any], expected: list[str]
) -> None:
    llm, encoder = ScriptedLlm(family=family, limits=BOTH), ScriptedEncoder()
    async with services([llm], [encoder]) as client:
        prompt = {"prompt": "x", "multi_modal_data": data, "mm_processor_kwargs": own}
        parts = [
            {"type": kind, kind: value}
            for kind, values in data.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        messages = [{"role": "user", "content": parts}]
        await client.generate([prompt])
        await client.complete(prompt)
        await client.chat(messages, mm_processor_kwargs=own)
        async for _ in await client.chat(messages, mm_processor_kwargs=own, stream=True):
            pass
        assert len(llm.requests) == 4
        for request in llm.requests:
            assert [item.settings for item in request.media] == expected
            assert all(item.key in encoder.payloads for item in request.media)


async def test_one_prompt_whole_and_streamed() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder()
    two = {"encoder_prompt": PICTURE, "decoder_prompt": "go on"}
    async with services([llm], [encoder]) as client:
        for prompt in ("hello", PICTURE, two):
            assert (await client.complete(prompt)).text == "Hello!"
            stream = await client.complete(prompt, SamplingParams(seed=3), stream=True)
            assert "".join([delta.text async for delta in stream]) == stream.answer.text == "Hello!"
    assert [request.text for request in llm.requests[::2]] == ["hello", "<image>", "go on"]
    assert llm.requests[-1].encoder_prompt.text == "<image>"
    assert llm.requests[-1].sampling.seed == 3


async def test_what_is_asked_for_again_is_delivered_again() -> None:
    llm, encoder = ScriptedLlm(ask_twice=True), ScriptedEncoder(pause_s=0.05)
    async with services([llm], [encoder]) as client:
        await client.generate(PICTURE)
        assert len(encoder.started) >= 1


async def test_a_batch_keeps_its_order() -> None:
    llm, encoder = ScriptedLlm(pause_s=0.01), ScriptedEncoder()
    async with services([llm], [encoder]) as client:
        prompts = [{"prompt_token_ids": [index]} for index in range(30)]
        answers = await client.generate(prompts)
        assert [answer.prompt_token_ids for answer in answers] == [[index] for index in range(30)]


async def test_one_for_each_prompt() -> None:
    llm = ScriptedLlm()
    async with services([llm]) as client:
        await client.generate(["a", "b"], [SamplingParams(seed=1), SamplingParams(seed=2)])
        assert sorted(request.sampling.seed for request in llm.requests) == [1, 2]
        with pytest.raises(InvalidRequestError):
            await client.generate(["a", "b"], [SamplingParams()])


async def later(seconds: float, *calm: Any) -> None:
    await asyncio.sleep(seconds)
    for service in calm:
        service.refuse_with = None


@pytest.mark.parametrize("which", ["llm", "encoder", "both"])
async def test_a_full_service_is_asked_again_after_its_delay(which: str) -> None:
    full = OverloadedError("full", retry_after=0.05)
    llm = ScriptedLlm(refuse_with=full if which != "encoder" else None)
    encoder = ScriptedEncoder(refuse_with=full if which != "llm" else None)
    async with services([llm], [encoder]) as client:
        calming = asyncio.create_task(later(0.3, llm, encoder))
        (answer,) = await client.generate(PICTURE)
        assert answer.text == "Hello!"
        # About one try each 0.05 s, not one each millisecond.
        assert len(llm.requests) + len(encoder.started) < 20
        await calming


async def test_full_for_ever_is_a_missed_deadline() -> None:
    llm = ScriptedLlm(refuse_with=OverloadedError("full", retry_after=0.05))
    async with services([llm]) as client:
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            await client.generate("a", timeout_s=0.4)
        assert 0.3 < time.monotonic() - begin < 2


async def test_a_full_replica_is_passed_over() -> None:
    llms = [ScriptedLlm(refuse_with=OverloadedError("full", retry_after=5)), ScriptedLlm()]
    async with services(llms) as client:
        answers = await client.generate([str(index) for index in range(8)])
        assert all(answer.text == "Hello!" for answer in answers)


async def test_replicas_that_are_gone_are_passed_over() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder()
    nobody = f"127.0.0.1:{free_port()}"
    async with services([llm], [encoder]) as client:
        async with AsyncClient(
            llm=[nobody, llm.address], encoder=f"{nobody}, {encoder.address}", max_concurrency=4
        ) as other:
            prompts = [{**PICTURE, "multi_modal_data": {"image": b"%d" % index}} for index in range(8)]
            assert len(await other.generate(prompts)) == 8
            assert (await other.model()).family == "qwen2_vl"
        assert (await client.model()).limits == {"image": 8}


async def test_nobody_is_there() -> None:
    async with services() as client:
        for call in (client.generate("a"), client.tokenize("a"), client.model()):
            with pytest.raises(UnavailableError):
                await call
    async with services([ScriptedLlm()]) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.generate(PICTURE)
        assert "encoder" in str(caught.value)


async def test_a_bad_picture_is_named_and_the_llm_let_go() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder(refuse_with=BadMediaError("no picture"))
    async with services([llm], [encoder]) as client:
        with pytest.raises(BadMediaError) as caught:
            await client.generate({"prompt": "", "multi_modal_data": {"image": [b"good", b"bad"]}})
        assert str(caught.value.param).startswith("multi_modal_data.image[")
        await until(lambda: llm.running == 0)
        found = await client.generate(["good", PICTURE, "good"], return_errors=True)
        assert [type(one).__name__ for one in found] == ["Answer", "BadMediaError", "Answer"]
        assert isinstance(found[1], BadMediaError)
        assert found[1].param == "prompts[1].multi_modal_data.image"


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("media[0]", "multi_modal_data.image"),
        ("media", "multi_modal_data"),
        ("stopping.max_token_count", "max_tokens"),
        ("sampling.top_p", "top_p"),
        (None, None),
    ],
)
async def test_refusals_speak_of_what_was_given(param: str | None, expected: str | None) -> None:
    llm = ScriptedLlm(refuse_with=InvalidRequestError("no", param=param))
    async with services([llm], [ScriptedEncoder()]) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate(PICTURE)
        assert (caught.value.param, caught.value.message) == (expected, "no")


async def test_an_answer_that_breaks_off() -> None:
    llm = ScriptedLlm(fail_with=InternalError("internal error, logged as 1"), fail_after=2)
    other = ScriptedLlm()
    async with services([llm, other]) as client:
        for _ in range(2):
            seen = ""
            try:
                async for delta in await client.chat([{"role": "user", "content": "a"}], stream=True):
                    seen += delta.text
            except InternalError:
                assert seen == "Hello"
            else:
                assert seen == "Hello!"


async def test_a_delivery_that_the_llm_refuses_is_no_fault_of_the_picture() -> None:
    encoder = ScriptedEncoder(fail_with=InvalidRequestError("the header is wrong"))
    async with services([ScriptedLlm()], [encoder]) as client:
        with pytest.raises(InternalError, match="the header is wrong"):
            await client.generate(PICTURE)


async def test_an_unknown_model() -> None:
    llm = ScriptedLlm(refuse_with=UnknownModelError("no such model", param="model"))
    async with services([llm], model="mine") as client:
        with pytest.raises(UnknownModelError):
            await client.generate("a")
        assert llm.requests[0].model == "mine"


async def test_a_stream_gives_deltas_and_then_the_answer() -> None:
    async with services([ScriptedLlm(pause_s=0.01)], [ScriptedEncoder()]) as client:
        content = [{"type": "image", "image": b"a picture"}, {"type": "text", "text": "what?"}]
        stream = await client.chat([{"role": "user", "content": content}], stream=True)
        assert [delta.text async for delta in stream] == ["Hel", "lo", "!"]
        assert stream.answer.text == "Hello!" and stream.answer.usage is not None
        assert [delta async for delta in stream] == []
        answer = await client.chat([{"role": "user", "content": content}])
        assert answer.text == "Hello!"


@pytest.mark.parametrize("way", ["closed", "dropped"])
async def test_a_stream_left_early_is_cancelled(way: str) -> None:
    llm = ScriptedLlm(words=["a"] * 1000, pause_s=0.01)
    async with services([llm]) as client:
        stream = await client.chat([{"role": "user", "content": "a"}], stream=True)
        await anext(stream)
        assert llm.running == 1
        if way == "closed":
            await stream.aclose()
        else:
            del stream
        await until(lambda: llm.running == 0, seconds=5)


async def test_a_slow_reader_holds_the_service_back() -> None:
    llm = ScriptedLlm(words=["word " * 2000] * 2000)
    async with services([llm]) as client:
        stream = await client.chat([{"role": "user", "content": "a"}], stream=True)
        await asyncio.sleep(0.3)
        held = len(stream.answer.text)
        await asyncio.sleep(0.3)
        assert len(stream.answer.text) == held < 2000 * 10_000
        await stream.aclose()


async def test_a_cancelled_call_lets_everything_go() -> None:
    llm, encoder = ScriptedLlm(words=["a"] * 1000, pause_s=0.01), ScriptedEncoder()
    async with services([llm], [encoder]) as client:
        task = asyncio.create_task(client.generate([PICTURE] * 4))
        await until(lambda: llm.running == 4 and bool(encoder.encoded))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: llm.running == 0 and encoder.running == 0, seconds=5)


async def test_closed_under_a_call() -> None:
    llm = ScriptedLlm(words=["a"] * 1000, pause_s=0.01)
    async with services([llm]) as client:
        task = asyncio.create_task(client.generate("a"))
        await until(lambda: llm.running == 1)
        await client.close()
        with pytest.raises(UnavailableError):
            await task


async def test_waiting_until_they_are_there() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder()
    ports = [free_port(), free_port()]
    async with AsyncClient(llm=f"127.0.0.1:{ports[0]}", encoder=f"127.0.0.1:{ports[1]}") as client:
        with pytest.raises(DeadlineError):
            await client.wait_until_ready(0.3)
        waiting = asyncio.create_task(client.wait_until_ready(20))
        servers = [await start_llm(llm, f"127.0.0.1:{ports[0]}")]
        await asyncio.sleep(0.3)
        assert not waiting.done()
        servers.append(await start_encoder(encoder, f"127.0.0.1:{ports[1]}"))
        await waiting
        for server in servers:
            await server.drain(0)


@pytest.mark.parametrize("address", ["", "host", "host:port", "host:0", "host:70000"])
def test_addresses_are_checked_at_once(address: str) -> None:
    with pytest.raises(InvalidRequestError):
        AsyncClient(llm=address)


async def test_a_name_that_stands_for_nothing() -> None:
    async with AsyncClient(llm="no-such-host.invalid:1") as client:
        with pytest.raises(UnavailableError, match=r"cannot resolve no-such-host.invalid:1"):
            await client.model()


async def test_the_address_that_encoders_use_may_be_another() -> None:
    llm, encoder = ScriptedLlm(), ScriptedEncoder()
    async with services([llm], [encoder], delivery_address="127.0.0.1:9") as client:
        # Nobody listens there: the encoder says so, and the client hears it.
        with pytest.raises(UnavailableError):
            await client.generate(PICTURE, timeout_s=20)
    with pytest.raises(InvalidRequestError):
        AsyncClient(llm="a:1,b:1", delivery_address="c:1")
