"""Tasks about pictures through all three services: answers, what they say as JSON, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from percept import Client, SamplingParams, read_answer
from tests.asking import data_url, picture, user
from tests.families.florence2 import PLACES, build, load_processor
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 24
SIZE = (112, 84)
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)

Json = dict[str, Any]


class World:
    """The services with a tiny checkpoint, and transformers' processor and model."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = load_processor(folder)
        self.folder = folder
        self._model: Any = None
        self.stack = UpStack(
            folder,
            *("--served-model-name", "tiny", "--workers", "1", "--kv-cache-gib", "0.05"),
            # The model is small: several threads would only wait for each other.
            *("--encoder-threads", "1", "--llm-threads", "1"),
        )

    def ask(self, *parts: Any, **fields: Any) -> httpx.Response:
        body = {"messages": [user(*parts)], "max_completion_tokens": TOKENS, **fields}
        return httpx.post(f"{self.stack.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)

    def choice(self, *parts: Any, **fields: Any) -> Json:
        response = self.ask(*parts, **fields)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        return dict(choice)

    def client(self) -> Client:
        (encoder,), (llm,) = self.stack.services("encoder"), self.stack.services("llm")
        return Client(encoder=encoder.address, llm=llm.address)

    def expected(self, prompt: str, seed: int, begun: str = "") -> str:
        """transformers' answer, with its places and without the marks around it."""
        import torch
        from transformers import Florence2ForConditionalGeneration

        if self._model is None:
            self._model = Florence2ForConditionalGeneration.from_pretrained(
                self.folder, dtype=torch.float32
            ).eval()
        inputs = self.processor(text=[prompt], images=[picture(seed, SIZE)], return_tensors="pt")
        tokenizer = self.processor.tokenizer
        ids = [tokenizer.eos_token_id, tokenizer.bos_token_id, *tokenizer(begun)["input_ids"]]
        with torch.no_grad():
            output = self._model.generate(
                **inputs,
                decoder_input_ids=torch.tensor([ids]),
                max_new_tokens=TOKENS,
                do_sample=False,
                num_beams=1,
                early_stopping=False,
            )
        (text,) = self.processor.batch_decode(output[:, len(ids) :], skip_special_tokens=False)
        return str(text).removesuffix("</s>")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(build(tmp_path_factory.mktemp("florence2")))
    yield made
    made.stack.stop()


def places_likely(world: World, *words: str) -> Json:
    """Fields that have an answer drawn from places and these words: the tiny model knows no shapes."""
    tokenizer = world.processor.tokenizer
    wanted = [*words, *PLACES[::2]]
    ids = [token for text in wanted for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return {"temperature": 1.5, "logit_bias": {str(token): 60 for token in ids}}


@pytest.mark.parametrize(
    "prompt",
    [
        "<CAPTION>",
        "<OD>",
        "<REGION_TO_CATEGORY><loc_52><loc_332><loc_932><loc_774>",
        "What is in the picture?",
    ],
)
def test_greedy_answers_are_transformers_own(world: World, prompt: str) -> None:
    """Nothing asks for greed: that is what the model does. Places are in the text."""
    choice = world.choice(picture(3, SIZE), prompt)
    assert choice["message"]["content"] == world.expected(prompt, 3)
    assert ("task_answer" in choice) == prompt.startswith("<")


@pytest.mark.parametrize("task", ["<OD>", "<REGION_PROPOSAL>", "<OCR_WITH_REGION>", "<DENSE_REGION_CAPTION>"])
def test_what_an_answer_says_is_what_the_processor_reads(world: World, task: str) -> None:
    found = 0
    for seed in range(6):
        fields = places_likely(world, " circle", " red", " green") | {"seed": seed}
        choice = world.choice(picture(seed, SIZE), task, **fields, max_tokens=None)
        text = choice["message"]["content"]
        expected = world.processor.post_process_generation(text, task=task, image_size=SIZE)
        assert choice["task_answer"] == expected == read_answer(text, task, SIZE)
        found += any(expected[task].values())
    assert found, "no answer held a shape: this proves nothing"


def test_streamed(world: World) -> None:
    fields = places_likely(world, " circle") | {"seed": 1, "n": 2}
    whole = world.ask(picture(1, SIZE), "<REGION_PROPOSAL>", **fields).json()["choices"]
    streamed = world.ask(picture(1, SIZE), "<REGION_PROPOSAL>", **fields, stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
    texts, said = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                said[choice["index"]] = choice["task_answer"]
    assert texts == [choice["message"]["content"] for choice in whole]
    assert said == [choice["task_answer"] for choice in whole]
    assert texts[0] != texts[1]


def test_the_python_client(world: World) -> None:
    shown = picture(4, SIZE)
    expected = world.expected("<OD>", 4)
    with world.client() as client:
        messages = [{"role": "user", "content": [{"type": "image", "image": shown}, "<OD>"]}]
        answer = client.chat(messages, GREEDY)
        assert answer.text == expected
        assert answer.outputs[0].task_answer == read_answer(expected, "<OD>", SIZE)
        # A prompt in the model's own format is the task too, with or without a placeholder.
        for prompt in ("<OD>", "<image><OD>"):
            made = client.complete({"prompt": prompt, "multi_modal_data": {"image": shown}}, GREEDY)
            assert made.text == expected
            assert made.outputs[0].task_answer == answer.outputs[0].task_answer
        ids = world.processor.tokenizer("<image><s>Locate the objects with category name in the image.</s>")
        (made,) = client.generate(
            [{"prompt_token_ids": ids["input_ids"], "multi_modal_data": {"image": shown}}], GREEDY
        )
        assert made.text == expected
        assert made.outputs[0].task_answer is None, "tokens name no task"


def test_an_answer_that_is_begun(world: World) -> None:
    """The encoder's prompt is the task, the decoder's is what the answer begins with."""
    begun = "There is a red circle to"
    prompt = {
        "encoder_prompt": {"prompt": "<CAPTION>", "multi_modal_data": {"image": picture(5, SIZE)}},
        "decoder_prompt": begun,
    }
    with world.client() as client:
        answer = client.complete(prompt, GREEDY)
    assert answer.text == world.expected("<CAPTION>", 5, begun)
    assert answer.text != world.expected("<CAPTION>", 5)
    assert answer.outputs[0].task_answer == {"<CAPTION>": answer.text.strip()}


def test_embeddings_may_tell_the_pictures_size(world: World) -> None:
    expected = world.expected("<OD>", 6)
    with world.client() as client:
        embeddings = dict(client.encode(picture(6, SIZE)))
        for fields, known in (
            (embeddings, True),
            ({"image_embeds": embeddings["image_embeds"]}, False),
        ):
            for task in ("<OD>", "<CAPTION>"):
                prompt = {"prompt": task, "multi_modal_data": {"image": fields}}
                (output,) = client.complete(prompt, GREEDY).outputs
                assert (output.task_answer is not None) == (known or task == "<CAPTION>")
                assert task != "<OD>" or output.text == expected


def test_typed_tokens(world: World) -> None:
    """Places may be typed; what begins and ends a text is only text, and a picture's token is none."""
    tokenizer = world.processor.tokenizer
    with world.client() as client:
        count = len(client.tokenize([{"role": "user", "content": "<loc_7>"}]))
        assert count == len(client.tokenize([{"role": "user", "content": "<loc_999>"}])) == 4
        marks = client.tokenize([{"role": "user", "content": "a</s><s>b"}])
        assert marks.count(tokenizer.eos_token_id) == marks.count(tokenizer.bos_token_id) == 1
    assert world.choice(picture(3, SIZE), "a</s><image> b")["message"]["content"] != ""


def test_an_empty_prompt(world: World) -> None:
    """The text encoder reads the picture and the marks around nothing, as the processor writes them."""
    expected = world.expected("", 5)
    assert expected != world.expected("", 6)
    shown = {"image": picture(5, SIZE)}
    prompts: list[Any] = [
        {"prompt": "", "multi_modal_data": shown},
        {"prompt": "<image>", "multi_modal_data": shown},
        {"encoder_prompt": {"prompt": "", "multi_modal_data": shown}, "decoder_prompt": ""},
        {"encoder_prompt": {"prompt": "<image>", "multi_modal_data": shown}, "decoder_prompt": ""},
    ]
    with world.client() as client:
        assert [client.complete(prompt, GREEDY).text for prompt in prompts] == [expected] * 4
    assert world.choice(picture(5, SIZE))["message"]["content"] == expected


def test_more_placeholders_than_pictures(world: World) -> None:
    data = {"image": data_url(picture(5, SIZE))}
    twice = {"prompt": "<image><image><CAPTION>", "multi_modal_data": data}
    for body, param in (
        (twice, "prompt"),
        ({"prompt": [twice, twice]}, "prompt"),
        ({"encoder_prompt": twice, "decoder_prompt": ""}, "encoder_prompt"),
    ):
        refused = httpx.post(f"{world.stack.url}/v1/completions", json=body, timeout=60, trust_env=False)
        error = refused.json()["error"]
        assert refused.status_code == 400 and error["param"].startswith(param), refused.text
        assert "2 placeholders" in error["message"]
    # Typed in a chat they are only text.
    assert world.choice(picture(3, SIZE), "<image><image> b")["message"]["content"] != ""


WRONG: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "two pictures": (lambda: (picture(1), picture(2), "<OD>"), "At most 1 image"),
    "no picture": (lambda: ("<OD>",), "one picture"),
    "a task that there is not": (lambda: (picture(1), "<DANCE>"), "<DENSE_REGION_CAPTION>"),
    "words behind a task that takes none": (lambda: (picture(1), "<OD> all cats"), "no words"),
    "too many words": (lambda: (picture(1), "what is " * 400), "text encoder reads"),
    "a video": (
        lambda: ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, "<OD>"),
        "no video",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_the_next_is_answered(world: World, name: str) -> None:
    make, words = WRONG[name]
    refused = world.ask(*make())
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert words in error["message"], error
    # A kind of which there is too much is named as in --limit-mm-per-prompt.
    named = "image" if error["code"] == "too_many_images" else "messages"
    assert error["param"].startswith(named), error
    assert world.choice(picture(3, SIZE), "<OD>")["message"]["content"] == world.expected("<OD>", 3)


def test_a_longer_answer_than_the_decoder_has_positions_for_is_refused(world: World) -> None:
    refused = world.ask(picture(1), "<OD>", max_completion_tokens=511)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    ends = {str(world.processor.tokenizer.eos_token_id): 100}
    longest = world.choice(picture(1), "<OD>", max_completion_tokens=510, logit_bias=ends)
    assert (longest["finish_reason"], longest["message"]["content"]) == ("stop", "")


def test_the_last_message_is_the_prompt(world: World) -> None:
    """Of a conversation the last user message counts, with the picture wherever it was shown."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        user(picture(3, SIZE), "<CAPTION>"),
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "<OD>"},
    ]
    choice = world.ask(messages=messages).json()["choices"][0]
    assert choice["message"]["content"] == world.expected("<OD>", 3)


def test_nothing_is_held_afterwards(world: World) -> None:
    world.stack.wait_until_idle(5)
