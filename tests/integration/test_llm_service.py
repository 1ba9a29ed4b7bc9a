"""The LLM service with its real engine process, over real gRPC, on tiny checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_service.service import running
from llm_service.settings import LlmSettings
from protos.llm.v1 import embedding_service_pb2 as embedding_pb
from protos.llm.v1 import llm_service_pb2 as pb
from protos.media.v1 import media_pb2
from shared.errors import (
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PerceptError,
    UnknownModelError,
)
from shared.rpc.channel import open_channel
from shared.rpc.status import from_rpc_error
from tests.integration.llm_caller import (
    Answer,
    Caller,
    Rows,
    chat,
    chunk_frame,
    frames_of,
    key_of,
    message,
    picture,
    question,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

MAX_PENDING = 24
MAX_MODEL_LEN = 512
ROW_BYTES = 64 * 4
STORE_PAGES = 3
"""The embedding store's size: each of the small pictures here takes one page of it."""


@dataclass
class Bench:
    """One running service with its caller and its reference."""

    caller: Caller
    rows: Rows
    channel: grpc.aio.Channel

    @property
    def placeholder(self) -> str:
        """One picture in a raw prompt."""
        tokenizer = self.rows.reference.tokenizer
        token: str = tokenizer.convert_ids_to_tokens(self.rows.reference.config.image_token_id)
        return token if token == "<image>" else f"<|vision_start|>{token}<|vision_end|>"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["qwen2_vl", "qwen2_5_vl", "llava"])
async def bench(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]
) -> AsyncIterator[Bench]:
    folder = tiny_checkpoint(request.param)
    settings = LlmSettings(
        model=str(folder),
        listen="127.0.0.1:0",
        served_model_name=("tiny", "alias"),
        device="cpu",
        threads=1,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=32,
        kv_cache_gib=0.02,
        embedding_store_gib=STORE_PAGES * 4096 / 1024**3,
        max_pending_requests=MAX_PENDING,
        limit_mm_per_prompt={"image": 3},
        default_deadline_s=60,
        drain_grace_s=0,
    )
    rows = await asyncio.to_thread(Rows, folder)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running(settings, asyncio.Event()))
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{service.port}"))
        yield Bench(Caller(channel), rows, channel)


@pytest.fixture(autouse=True)
def _same_loop(bench: Bench) -> None:
    """Every test here has a service."""


async def settled(caller: Caller) -> pb.GetStatusResponse:
    """The status once nothing runs any more; within a second, or the test fails."""
    for _ in range(100):
        status = await caller.status()
        idle = not status.pending_request_count and not status.running_sequence_count
        if idle and not status.waiting_sequence_count and not status.used_block_count:
            return status
        await asyncio.sleep(0.01)
    raise AssertionError(f"something is still held: {status}")


async def refusal(caller: Caller, request: pb.GenerateRequest) -> PerceptError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames_of(caller.open(request)):
            pass
    return from_rpc_error(caught.value, "llm")


# Answers


async def test_text_is_answered_as_transformers_answers(bench: Bench) -> None:
    request = chat(
        message("user", "Which colour is the circle?"),
        message("assistant", "It is red."),
        message("user", "Where is it? 赤い"),
    )
    answer = await bench.caller.ask(request)
    expected = await asyncio.to_thread(bench.rows.expected, request, [])
    assert answer.token_ids[0] == expected
    assert answer.texts[0] == bench.rows.reference.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.needed == []
    assert answer.usage.completion_token_count == len(expected)


async def test_deltas_that_may_wait_are_joined_and_say_the_same(bench: Bench) -> None:
    request = chat(
        message("user", "Which colour is the circle?"),
        max_tokens=24,
        sampling={"temperature": 0.0, "choice_count": 2},
        stopping={"ignore_eos": True},
        top_logprobs=1,
    )
    plain = await bench.caller.ask(request)
    request.deltas_may_wait = True
    joined = await bench.caller.ask(request)
    assert joined.token_ids == plain.token_ids and joined.texts == plain.texts
    assert [entry.chosen.token_id for entry in joined.logprobs if entry.top] == [
        token for delta in joined.deltas for token in delta.token_ids
    ]
    assert joined.usage.completion_token_count == 48
    assert all(finish.HasField("last_delta") for finish in joined.finishes.values())
    assert any(len(delta.token_ids) > 1 for delta in joined.deltas)
    request.stopping.stop_strings.append("never said")
    stopping = await bench.caller.ask(request)
    assert stopping.token_ids == plain.token_ids


async def test_pictures_are_asked_for_once_and_answered_as_transformers_answers(bench: Bench) -> None:
    images = [picture(1), picture(2, (112, 56))]
    request = question("Compare ", 0, " with ", 1, " please", images=images)
    first = await bench.caller.ask(request, bench.rows, images)
    expected = await asyncio.to_thread(bench.rows.expected, request, images)
    assert first.token_ids[0] == expected
    assert sorted(key for keys in first.needed for key in keys) == sorted(map(key_of, images))
    assert first.usage.image_token_count > 0
    again = await bench.caller.ask(request, bench.rows, images)
    assert again.token_ids[0] == expected and again.needed == []
    assert again.usage.cached_token_count > 0
    assert again.usage.prompt_token_count == first.usage.prompt_token_count


async def test_another_picture_under_the_same_words_is_no_cache_hit(bench: Bench) -> None:
    for seed in (11, 12):
        image = picture(seed)
        request = question(0, "What is it?", images=[image])
        answer = await bench.caller.ask(request, bench.rows, [image])
        assert answer.needed == [[key_of(image)]]
        assert answer.token_ids[0] == await asyncio.to_thread(bench.rows.expected, request, [image])


async def test_the_same_picture_twice_in_one_prompt_is_asked_for_once(bench: Bench) -> None:
    image = picture(21)
    request = question(0, "and", 1, images=[image, image])
    answer = await bench.caller.ask(request, bench.rows, [image])
    assert answer.needed == [[key_of(image)]]
    assert answer.token_ids[0] == await asyncio.to_thread(bench.rows.expected, request, [image, image])


async def test_sixteen_at_once_with_more_pictures_than_the_store_holds(bench: Bench) -> None:
    images = [picture(100 + index) for index in range(16)]
    requests = [question("Look: ", 0, f" at {seed}", images=[image]) for seed, image in enumerate(images)]
    answers = await asyncio.gather(
        *(
            bench.caller.ask(request, bench.rows, [image])
            for request, image in zip(requests, images, strict=True)
        )
    )
    for request, image, answer in zip(requests, images, answers, strict=True):
        assert answer.token_ids[0] == await asyncio.to_thread(bench.rows.expected, request, [image])
    await settled(bench.caller)


async def test_a_picture_that_two_want_is_asked_of_one(bench: Bench) -> None:
    image = picture(31)
    # Prompts are tokenised side by side, so the second call might otherwise be the first to want it.
    first = bench.caller.open(question(0, "a", images=[image]))
    frame = await first.read()
    assert list(frame.media_needed.keys) == [key_of(image)]
    second = bench.caller.open(question(0, "b", images=[image]))
    reading = asyncio.create_task(second.read())
    await asyncio.sleep(0.1)
    assert not reading.done()
    first.cancel()
    frame = await reading
    assert list(frame.media_needed.keys) == [key_of(image)], "the next one is asked"
    assert await bench.caller.push(*bench.rows.header_and_bytes(image))
    answer = Answer()
    async for frame in frames_of(second):
        answer.take(frame)
    assert answer.finishes[0].reason == pb.FINISH_REASON_LENGTH


async def test_text_before_a_picture_is_prefilled_while_the_picture_is_on_its_way(bench: Bench) -> None:
    image = picture(41)
    before = (await settled(bench.caller)).step_count
    placeholder = bench.placeholder
    request = question(0, images=[image])
    request.text = "word " * 60 + placeholder
    call = bench.caller.open(request)
    frame = await call.read()
    assert frame.HasField("media_needed")
    header, data = bench.rows.header_and_bytes(image)
    push = bench.caller.embeddings.PutEmbeddings(timeout=60)
    await push.write(embedding_pb.PutEmbeddingsRequest(header=header))
    async with asyncio.timeout(5):
        while (await bench.caller.status()).step_count < before + 2:
            await asyncio.sleep(0.01)
    await push.write(chunk_frame(0, data))
    await push.done_writing()
    assert (await push).stored
    answer = Answer()
    async for frame in frames_of(call):
        answer.take(frame)
    assert len(answer.token_ids[0]) == 12


# Choices, stops, log probabilities


async def test_choices_are_those_of_their_own_seeds(bench: Bench) -> None:
    sampling = {"temperature": 1.5, "seed": 5, "choice_count": 3}
    answer = await bench.caller.ask(question("Hello", sampling=sampling))
    assert sorted(answer.finishes) == [0, 1, 2]
    assert len({tuple(token_ids) for token_ids in answer.token_ids.values()}) == 3
    assert answer.usage.completion_token_count == sum(map(len, answer.token_ids.values()))
    single = {"temperature": 1.5, "seed": 6}
    alone = await bench.caller.ask(question("Hello", sampling=single))
    assert alone.token_ids[0] == answer.token_ids[1]


async def test_a_stop_string_ends_the_text_wherever_tokens_cut_it(bench: Bench) -> None:
    whole = (await bench.caller.ask(question("Say it", max_tokens=24))).texts[0]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    for include in (False, True):
        stopping = {"stop_strings": [stop], "include_stop_string": include}
        answer = await bench.caller.ask(question("Say it", max_tokens=24, stopping=stopping))
        end = whole.index(stop) + (len(stop) if include else 0)
        assert answer.texts.get(0, "") == whole[:end]
        assert answer.finishes[0].reason == pb.FINISH_REASON_STOP
        assert answer.finishes[0].stop_string == stop
    await settled(bench.caller)


async def test_a_stop_token_ends_the_choice_and_is_named_and_min_tokens_puts_it_off(bench: Bench) -> None:
    tokens = (await bench.caller.ask(question("Tell", max_tokens=8))).token_ids[0]
    stopping = {"stop_token_ids": [tokens[3]]}
    answer = await bench.caller.ask(question("Tell", max_tokens=8, stopping=stopping))
    assert answer.token_ids[0] == tokens[: tokens.index(tokens[3]) + 1]
    assert answer.finishes[0].stop_token_id == tokens[3]
    late = await bench.caller.ask(question("Tell", max_tokens=8, stopping=stopping | {"min_token_count": 8}))
    assert len(late.token_ids[0]) == 8


async def test_log_probabilities_come_with_every_token(bench: Bench) -> None:
    answer = await bench.caller.ask(question("Hi", top_logprobs=3))
    assert len(answer.logprobs) == len(answer.token_ids[0]) == 12
    for token_id, logprob in zip(answer.token_ids[0], answer.logprobs, strict=True):
        assert logprob.chosen.token_id == token_id == logprob.top[0].token_id
        assert len(logprob.top) == 3 and logprob.chosen.logprob <= 0
        assert logprob.chosen.raw.decode("utf-8", "replace") == logprob.chosen.text
    special = bench.rows.reference.tokenizer.all_special_ids
    texts = [one.chosen.text for one in answer.logprobs if one.chosen.token_id not in special]
    # Bytes that are no whole character may be joined to another number of U+FFFD.
    assert "".join(texts).replace("\ufffd", "").strip().startswith(answer.texts[0].split("\ufffd")[0].strip())


async def test_every_choice_has_its_own_log_probabilities(bench: Bench) -> None:
    sampling = {"temperature": 1.5, "seed": 5, "choice_count": 2}
    answer = await bench.caller.ask(question("Hi", sampling=sampling, top_logprobs=2))
    for index in range(2):
        told = [one for delta in answer.deltas if delta.choice_index == index for one in delta.logprobs]
        assert [one.chosen.token_id for one in told] == answer.token_ids[index]
        assert all(len(one.top) == 2 for one in told)


# Refusals


@pytest.mark.parametrize(
    ("request_", "kind", "param"),
    [
        (pb.GenerateRequest(), InvalidRequestError, "prompt"),
        (question("a", sampling={"temperature": 3.0}), InvalidRequestError, "sampling.temperature"),
        (question("a", stopping={"stop_strings": [""]}), InvalidRequestError, "stopping.stop_strings[0]"),
        (question("a", top_logprobs=21), InvalidRequestError, "top_logprobs"),
        (question("a", request_id="x" * 129), InvalidRequestError, "request_id"),
        (question("a", model="other"), UnknownModelError, "model"),
        (question("a " * 600), ContextLengthError, "prompt"),
        (question("a", max_tokens=MAX_MODEL_LEN), ContextLengthError, "stopping.max_token_count"),
        (question(0, 1, 2, 3, images=[picture(i) for i in range(4)]), InvalidRequestError, "media"),
    ],
)
async def test_a_bad_request_is_refused_with_its_field(
    bench: Bench, request_: pb.GenerateRequest, kind: type[PerceptError], param: str
) -> None:
    error = await refusal(bench.caller, request_)
    assert type(error) is kind and error.param == param
    if kind is ContextLengthError:
        assert "This model's maximum context length is" in error.message
    assert (await bench.caller.ask(question("still there", model="alias"))).finishes


async def test_a_prompt_that_its_pictures_make_too_long_is_refused(bench: Bench) -> None:
    images = [picture(51), picture(52), picture(53)]
    request = question("Compare", 0, 1, 2, images=images)
    conversation = pb.TokenizeRequest(conversation=request.conversation)
    unexpanded = len((await bench.caller.llm.Tokenize(conversation, timeout=10)).token_ids)
    request.stopping.max_token_count = MAX_MODEL_LEN - unexpanded
    call = bench.caller.open(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for frame in frames_of(call):
            for key in frame.media_needed.keys:
                (image,) = [image for image in images if key_of(image) == key]
                await bench.caller.push(*bench.rows.header_and_bytes(image))
    assert isinstance(from_rpc_error(caught.value, "llm"), ContextLengthError)
    await settled(bench.caller)


async def test_requests_beyond_the_bound_are_refused_with_a_delay(bench: Bench) -> None:
    image = picture(61)
    calls = [bench.caller.open(question(0, images=[image])) for _ in range(MAX_PENDING)]
    reads = [asyncio.create_task(call.read()) for call in calls]
    async with asyncio.timeout(5):
        while (await bench.caller.status()).pending_request_count < MAX_PENDING:
            await asyncio.sleep(0.01)
    error = await refusal(bench.caller, question("one more"))
    assert isinstance(error, OverloadedError) and error.retry_after > 0
    for call in calls:
        call.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    await settled(bench.caller)
    assert (await bench.caller.ask(question("one more"))).finishes


# Callers who leave, and deadlines


@pytest.mark.parametrize("phase", ["layout", "rows", "decode"])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_call_that_ends_early_frees_everything(bench: Bench, phase: str, end: str) -> None:
    image = picture(200 + 10 * len(phase) + len(end))
    # So much that the deadline comes first, whatever the tokens are and however fast the machine.
    sampling = {"temperature": 0.0, "choice_count": 64}
    request = question(
        *("look", 0),
        images=[image],
        max_tokens=400,
        sampling=sampling,
        stopping={"ignore_eos": True},
        top_logprobs=20,
    )
    call = bench.caller.open(request, timeout=1.0 if end == "deadline" else 60)
    frame = await call.read()
    assert frame.HasField("media_needed")
    header, data = bench.rows.header_and_bytes(image)
    push = bench.caller.embeddings.PutEmbeddings(timeout=60)
    if phase != "layout":
        await push.write(embedding_pb.PutEmbeddingsRequest(header=header))
        await push.write(chunk_frame(0, data[:ROW_BYTES]))
    if phase == "decode":
        await push.write(chunk_frame(ROW_BYTES, data[ROW_BYTES:]))
        await push.done_writing()
        assert (await push).stored
        assert (await call.read()).HasField("delta")
    if end == "cancel":
        call.cancel()
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in frames_of(call):
                pass
        assert isinstance(from_rpc_error(caught.value, "llm"), DeadlineError)
    status = await settled(bench.caller)
    if phase == "rows":
        await push.write(chunk_frame(ROW_BYTES, data[ROW_BYTES:]))
        await push.done_writing()
        assert not (await push).stored, "nobody wants the rows any more"
    if phase != "decode":
        held = status.embedding_byte_count
        assert (await settled(bench.caller)).embedding_byte_count <= held
    push.cancel()


# Pushes


async def test_a_push_that_breaks_off_is_asked_for_again(bench: Bench) -> None:
    image = picture(71)
    call = bench.caller.open(question(0, "well?", images=[image]))
    assert (await call.read()).HasField("media_needed")
    header, data = bench.rows.header_and_bytes(image)
    push = bench.caller.embeddings.PutEmbeddings(timeout=60)
    await push.write(embedding_pb.PutEmbeddingsRequest(header=header))
    await push.write(chunk_frame(0, data[:ROW_BYTES]))
    await asyncio.sleep(0.1)
    push.cancel()
    answer = Answer()
    async for frame in frames_of(call):
        answer.take(frame)
        if frame.HasField("media_needed"):
            assert await bench.caller.push(header, data)
    assert answer.needed == [[key_of(image)]]
    expected = await asyncio.to_thread(bench.rows.expected, question(0, "well?", images=[image]), [image])
    assert answer.token_ids[0] == expected


async def test_a_push_that_nobody_wants_is_no_error(bench: Bench) -> None:
    assert not await bench.caller.push(*bench.rows.header_and_bytes(picture(81)))


async def test_a_bad_push_is_refused(bench: Bench) -> None:
    header, data = bench.rows.header_and_bytes(picture(82))

    def changed(**fields: object) -> media_pb2.EmbeddingsHeader:
        copy = media_pb2.EmbeddingsHeader()
        copy.CopyFrom(header)
        for name, value in fields.items():
            if name == "key":
                copy.key = str(value)
            elif name == "width":
                copy.tensors[0].shape[1] = int(str(value))
            else:
                setattr(copy.tensors[0], name, value)
        return copy

    bad = [changed(key="x"), changed(width=63), changed(name="other"), changed(data_type=4)]
    for wrong in bad:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.caller.push(wrong, b"")
        assert isinstance(from_rpc_error(caught.value, "llm"), InvalidRequestError)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.caller.embeddings.PutEmbeddings(one_frame(chunk_frame(0, data)), timeout=10)
    assert isinstance(from_rpc_error(caught.value, "llm"), InvalidRequestError)


async def one_frame(
    frame: embedding_pb.PutEmbeddingsRequest,
) -> AsyncIterator[embedding_pb.PutEmbeddingsRequest]:
    yield frame


# The small calls


async def test_tokens_come_and_go(bench: Bench) -> None:
    llm, tokenizer = bench.caller.llm, bench.rows.reference.tokenizer
    text = "ein rotes Bild 赤い"
    tokens = await llm.Tokenize(pb.TokenizeRequest(text=text), timeout=10)
    assert list(tokens.token_ids) == tokenizer(text)["input_ids"]
    assert len(tokens.token_texts) == len(tokens.token_ids) and tokens.max_model_len == MAX_MODEL_LEN
    back = await llm.Detokenize(pb.DetokenizeRequest(token_ids=tokens.token_ids), timeout=10)
    assert back.text == text
    with pytest.raises(grpc.aio.AioRpcError):
        await llm.Detokenize(pb.DetokenizeRequest(token_ids=[10**6]), timeout=10)


async def test_the_service_says_what_it_is_and_how_it_is(bench: Bench) -> None:
    model = await bench.caller.llm.GetModel(pb.GetModelRequest(), timeout=10)
    assert list(model.models) == ["tiny", "alias"] and model.hidden_size == 64
    assert model.max_model_len == MAX_MODEL_LEN and model.modality_limits[0].max_item_count == 3
    status = await bench.caller.status()
    assert status.block_count > 0 and status.engine_start_count == 1
    assert status.resident_byte_count > 0 and status.engine_resident_byte_count > 0
    health = health_pb2_grpc.HealthStub(bench.channel)
    for name in ("", "protos.llm.v1.LlmService", "protos.llm.v1.EmbeddingService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
