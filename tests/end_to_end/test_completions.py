"""POST /v1/completions through the running services, with OpenAI's own client.

Greedy, float32 on the CPU: what chat answers, the same prompt in the model's own format
answers too; and the prompts of encoder-decoder models, in one and in two, are transformers'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.asking import audio_part, data_url, picture, sound, template_messages, user
from tests.end_to_end.conftest import CONTEXT, MODEL
from tests.families.mllama import CASE as MLLAMA
from tests.oracle import Oracle
from tests.reference import ReferenceModel
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 20
FLAGS = ("--served-model-name", MODEL, "--workers", "1", "--kv-cache-gib", "0.05")
CONVERSATIONS = [
    [user("hello, who are you?")],
    [user(picture(1), "what is this?")],
    [user("first", picture(2), "then", picture(3, (90, 60)), "compare")],
]


def pictures_in(messages: list[dict[str, Any]]) -> list[str]:
    parts = [part for message in messages for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def written_out(reference: ReferenceModel, messages: list[dict[str, Any]]) -> str:
    """The conversation with the checkpoint's template applied by hand."""
    text: str = reference.tokenizer.apply_chat_template(
        template_messages(messages), tokenize=False, add_generation_prompt=True
    )
    return text


async def complete(client: openai.AsyncOpenAI, prompt: Any, **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in ("multi_modal_data", "min_tokens") if name in fields}
    asked = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS, **fields}
    return await client.completions.create(prompt=prompt, extra_body={"min_tokens": TOKENS, **own}, **asked)


async def test_what_chat_answers(client: openai.AsyncOpenAI, reference: ReferenceModel) -> None:
    chats = [
        client.chat.completions.create(
            model=MODEL,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_completion_tokens=TOKENS,
            extra_body={"min_tokens": TOKENS},
        )
        for messages in CONVERSATIONS
    ]
    chatted = await asyncio.gather(*chats)
    texts = [written_out(reference, messages) for messages in CONVERSATIONS]
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": pictures_in(messages)}}
        for text, messages in zip(texts, CONVERSATIONS, strict=True)
    ]
    together = await complete(client, prompts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in chatted)
    assert together.usage.completion_tokens == 3 * TOKENS
    for answer, choice, prompt in zip(chatted, together.choices, prompts, strict=True):
        text = answer.choices[0].message.content
        assert choice.text == text
        assert choice.finish_reason == "length"
        ids = reference.tokenizer(prompt["prompt"])["input_ids"]
        as_ids = await complete(client, ids, multi_modal_data=prompt["multi_modal_data"])
        assert as_ids.choices[0].text == text
        assert as_ids.usage.prompt_tokens == answer.usage.prompt_tokens
        stream = await complete(
            client,
            prompt["prompt"],
            multi_modal_data=prompt["multi_modal_data"],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(one.text for chunk in chunks for one in chunk.choices) == text
        assert chunks[-1].usage.completion_tokens == TOKENS


async def test_the_same_picture_twice_is_found_in_the_prefix_cache(
    client: openai.AsyncOpenAI, reference: ReferenceModel
) -> None:
    text = written_out(reference, CONVERSATIONS[1])
    data = {"image": data_url(picture(77))}
    first, again = [await complete(client, text, multi_modal_data=data) for _ in range(2)]
    assert first.choices[0].text == again.choices[0].text
    details = again.usage.prompt_tokens_details.to_dict()
    assert details["cached_tokens"] >= details["image_tokens"] > 0


async def test_echo_of_text_and_of_token_ids(client: openai.AsyncOpenAI, reference: ReferenceModel) -> None:
    text = "tell me about the colours"
    plain = (await complete(client, text)).choices[0].text
    echoed = await complete(client, text, echo=True)
    assert echoed.choices[0].text == text + plain
    ids = reference.tokenizer(text)["input_ids"]
    assert (await complete(client, [ids], echo=True)).choices[0].text == text + plain
    with pytest.raises(openai.BadRequestError) as caught:
        await complete(client, [*ids, 10**6], echo=True)
    assert caught.value.param == f"prompt[{len(ids)}]"


async def test_logprobs_stops_seeds_and_penalties(client: openai.AsyncOpenAI) -> None:
    (choice,) = (await complete(client, "the colour of", logprobs=3)).choices
    assert [len(values) for values in choice.logprobs.to_dict().values()] == [TOKENS] * 4
    for token, logprob, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        # Greedy: the chosen token is the likeliest.
        assert top[token] == logprob == max(top.values()) <= 0
        assert len(top) == 3
    text = choice.text
    stop = next(text[i : i + 3] for i in range(2, len(text)) if text.find(text[i : i + 3]) == i)
    stopped = (await complete(client, "the colour of", stop=stop, min_tokens=0)).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    drawn = [
        [one.text for one in (await complete(client, ["a", "b"], temperature=1.5, n=3, seed=7)).choices]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 3
    pushed = await complete(client, "the colour of", presence_penalty=2, frequency_penalty=2)
    assert pushed.choices[0].text != text


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ("<|image_pad|> what?", {}, "multi_modal_data"),
        ("what?", {"multi_modal_data": {"image": data_url(picture(5))}}, "multi_modal_data"),
        (
            "<|image_pad|><|image_pad|>",
            {"multi_modal_data": {"image": data_url(picture(5))}},
            "multi_modal_data",
        ),
        ("", {}, "prompt"),
        ([5, 10**6], {}, "prompt[1]"),
        ("word " * (CONTEXT + 100), {}, "prompt"),
        ("word", {"max_tokens": CONTEXT}, "max_tokens"),
        ({"encoder_prompt": "look", "decoder_prompt": "word"}, {}, "prompt.encoder_prompt"),
        (
            "<|image_pad|>",
            {"multi_modal_data": {"image": "data:image/png;base64,AAAA"}},
            "multi_modal_data.image",
        ),
    ],
    ids=[
        "no item", "no placeholder", "two placeholders", "empty", "no token", "long prompt", "long answer",
        "two prompts", "no picture",
    ],
)  # fmt: skip
async def test_mistakes_are_told_and_nothing_else_suffers(
    client: openai.AsyncOpenAI, prompt: Any, fields: dict[str, Any], param: str
) -> None:
    (good, bad) = await asyncio.gather(
        complete(client, "hello"), complete(client, prompt, **fields), return_exceptions=True
    )
    assert isinstance(bad, openai.BadRequestError), bad
    assert bad.param == param
    assert good.usage.completion_tokens == TOKENS


async def test_a_client_that_leaves_frees_all_its_prompts(client: openai.AsyncOpenAI, stack: UpStack) -> None:
    shown = [data_url(picture(90 + index)) for index in range(6)]
    prompts = [{"prompt": "<|image_pad|>" * 2, "multi_modal_data": {"image": [one] * 2}} for one in shown]
    stream = await complete(client, prompts, max_tokens=600, min_tokens=600, stream=True)
    async for _ in stream:
        break
    await stream.close()
    asking = asyncio.create_task(complete(client, ["tell"] * 6, max_tokens=600, min_tokens=600))
    await asyncio.sleep(0.5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert stack.wait_until_idle(10) < 10


@pytest.fixture(scope="module")
def whisper(tiny_checkpoint: Callable[[str], Path]) -> Iterator[UpStack]:
    running = UpStack(tiny_checkpoint("whisper"), *FLAGS)
    yield running
    running.stop()


def whisper_answer(folder: Path, samples: Any) -> str:
    """What transformers writes down, in English and without times."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor: Any = WhisperProcessor.from_pretrained(folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    features = processor.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            **features,
            language="en",
            task="transcribe",
            do_sample=False,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            force_unique_generate_call=True,
        )
    text: str = processor.tokenizer.decode(output[0], skip_special_tokens=True, decode_with_timestamps=True)
    return text


async def test_whisper_in_one_prompt_and_in_two(
    whisper: UpStack, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint("whisper")
    whole = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    async with openai.AsyncOpenAI(
        base_url=f"{whisper.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as client:
        texts = set()
        for seed in (1, 5):
            samples = sound(seed, 1.5)
            data = {"audio": audio_part(samples)["input_audio"]}
            ids = [int(found) for found in _tokens(folder, whole)]
            prompts: list[Any] = [
                {"prompt": whole, "multi_modal_data": data},
                {"encoder_prompt": {"prompt": "", "multi_modal_data": data}, "decoder_prompt": whole},
                {"encoder_prompt": {"multi_modal_data": data}, "decoder_prompt": ids},
            ]
            answer = await complete(client, prompts)
            expected = whisper_answer(folder, samples)
            assert [choice.text.strip() for choice in answer.choices] == [expected.strip()] * 3
            texts.add(expected)
        assert len(texts) == 2, "the checkpoint hears no difference: the test would prove nothing"
        # What a prompt leaves open comes first in the answer; without any, the model begins by itself.
        opened = [
            await complete(client, {"encoder_prompt": {"multi_modal_data": data}, "decoder_prompt": start})
            for start in ("<|startoftranscript|>", None)
        ]
        assert opened[0].choices[0].text == opened[1].choices[0].text
        for wrong, param in (
            ({"encoder_prompt": {"prompt": "listen", "multi_modal_data": data}, "decoder_prompt": whole},
             "prompt.encoder_prompt"),
            ({"encoder_prompt": "", "decoder_prompt": whole}, "prompt.encoder_prompt.multi_modal_data"),
            ({"prompt": whole, "multi_modal_data": {"audio": [data["audio"]] * 2}},
             "prompt.multi_modal_data.audio"),
        ):  # fmt: skip
            with pytest.raises(openai.BadRequestError) as caught:
                await complete(client, wrong)
            assert caught.value.param == param


def _tokens(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def mllama(tiny_checkpoint: Callable[[str], Path]) -> Iterator[UpStack]:
    running = UpStack(tiny_checkpoint("mllama"), *FLAGS)
    yield running
    running.stop()


async def test_mllama_in_one_prompt_and_in_two(
    mllama: UpStack, tiny_checkpoint: Callable[[str], Path], oracle: Oracle
) -> None:
    text = "<|image|><|begin_of_text|>Please describe the image."
    shown = picture(4)
    expected = oracle.ask(MLLAMA, tiny_checkpoint("mllama"), text, [shown], new_tokens=TOKENS)
    assert expected.text == text
    data = {"image": data_url(shown)}
    prompts = [
        {"prompt": text, "multi_modal_data": data},
        {"encoder_prompt": {"prompt": "<|image|>", "multi_modal_data": data}, "decoder_prompt": text},
        {"encoder_prompt": {"multi_modal_data": data}, "decoder_prompt": {"prompt": text}},
    ]
    async with openai.AsyncOpenAI(
        base_url=f"{mllama.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as client:
        answer = await complete(client, prompts)
        assert len({choice.text for choice in answer.choices}) == 1
        decode = ReferenceTokenizer(tiny_checkpoint("mllama"))
        assert answer.choices[0].text == decode(expected.new_ids)
        for encoder, decoder, param in (
            ("<|image|><|image|>", text, "prompt.encoder_prompt"),
            ("<|image|> look", text, "prompt.encoder_prompt"),
            ("<|image|>", "<|begin_of_text|>Please", "prompt.encoder_prompt.multi_modal_data"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                asked = {"encoder_prompt": {"prompt": encoder, "multi_modal_data": data}}
                await complete(client, {**asked, "decoder_prompt": decoder})
            assert caught.value.param == param


class ReferenceTokenizer:
    """Text of tokens, as transformers decodes them."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def __call__(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
