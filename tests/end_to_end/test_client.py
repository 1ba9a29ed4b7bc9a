"""The client against the real services: the answers are those of transformers, however media are given."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from percept import AsyncClient, Client, SamplingParams
from percept.client.embeddings import Embeddings
from shared.errors import (
    BadEmbeddingsError,
    BadMediaError,
    InvalidRequestError,
    PerceptError,
    UnavailableError,
)
from tests.asking import data_url, moving_picture, picture, template_messages, user
from tests.end_to_end.conftest import CONTEXT, ITEM_LIMIT, MODEL
from tests.reference import ReferenceModel
from tests.stack import UpStack, clean_environment

pytestmark = pytest.mark.end_to_end

GREEDY = SamplingParams(temperature=0, max_tokens=12)
MARK = "<|vision_start|><|image_pad|><|vision_end|>"


def text_about(count: int, question: str = "what is this?") -> str:
    return f"<|im_start|>user\n{MARK * count}{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def client(stack: UpStack) -> Iterator[Client]:
    with open_client(stack) as running:
        yield running


def addresses(stack: UpStack) -> dict[str, Any]:
    encoders = [service.address for service in stack.services("encoder")]
    return {"encoder": encoders, "llm": stack.services("llm")[0].address}


def open_client(stack: UpStack) -> Client:
    return Client(**addresses(stack))


def expected(reference: ReferenceModel, text: str, *pictures: Image.Image) -> list[int]:
    ids = [int(token) for token in reference.tokenizer(text)["input_ids"]]
    return reference.generate(ids, pictures, 12)


def asked(client: Client, value: Any, text: str) -> list[int]:
    (answer,) = client.generate({"prompt": text, "multi_modal_data": {"image": value}}, GREEDY)
    return answer.outputs[0].token_ids


def test_a_picture_in_every_form_gives_the_same_tokens(
    client: Client, reference: ReferenceModel, tmp_path: Path
) -> None:
    image, text = picture(71), text_about(1)
    right = expected(reference, text, image)
    path = tmp_path / "picture.png"
    image.save(path)
    pixels = np.asarray(image)
    for value in (
        image,
        pixels,
        torch.from_numpy(pixels.copy()),
        path,
        str(path),
        path.read_bytes(),
        data_url(image),
    ):
        assert asked(client, value, text) == right, type(value)
    assert asked(client, [image], text) == right


def test_several_pictures_and_none(client: Client, reference: ReferenceModel) -> None:
    images = [picture(72), picture(73, (60, 140)), picture(74)]
    assert asked(client, images, text_about(3)) == expected(reference, text_about(3), *images)
    (answer,) = client.generate("the circle is", GREEDY)
    assert client.complete("the circle is", GREEDY).text == answer.text
    pieces = client.complete("the circle is", GREEDY, stream=True)
    assert "".join(delta.text for delta in pieces) == answer.text
    assert answer.outputs[0].token_ids == expected(reference, "the circle is")


def test_embeddings_come_back_and_go_in(client: Client, reference: ReferenceModel, tmp_path: Path) -> None:
    images = [picture(75), picture(76, (60, 140))]
    first, second = client.encode_many(images)
    assert isinstance(first["image_embeds"], np.ndarray) and first["image_embeds"].dtype == np.float32
    assert first["image_grid_thw"].dtype == np.int64 and first["image_grid_thw"].shape == (1, 3)
    right = expected(reference, text_about(2), *images)
    joined = Embeddings.joined([first, second])
    joined.save(tmp_path / "both.safetensors")
    by_torch = {name: tensor for name, tensor in joined.torch().items()}
    for value in (
        [first, second],
        [dict(first), dict(second)],
        [first.torch(), images[1]],
        joined,
        by_torch,
        tmp_path / "both.safetensors",
    ):
        assert asked(client, value, text_about(2)) == right
    # Narrower types are taken too, and said to be so.
    half = {**by_torch, "image_embeds": by_torch["image_embeds"].bfloat16()}
    assert len(asked(client, half, text_about(2))) > 0


def test_chat_is_rendered_as_transformers_does(client: Client, reference: ReferenceModel) -> None:
    image = picture(77)
    messages = [user("hello"), {"role": "assistant", "content": "a red circle"}, user(image, "and this?")]
    right = reference.generate(reference.chat(template_messages(messages)), [image], 12)
    ours = [*messages[:2], {"role": "user", "content": [{"type": "image", "image": image}, "and this?"]}]
    for given in (messages, ours):
        answer = client.chat(given, GREEDY)
        assert answer.outputs[0].token_ids == right
        assert answer.usage is not None and answer.usage.completion_tokens == len(right)
    deltas = list(client.chat(ours, GREEDY, stream=True))
    assert [token for delta in deltas for token in delta.token_ids] == right
    assert "".join(delta.text for delta in deltas) == answer.text


def test_a_batch_is_in_order_and_its_failures_in_place(client: Client, reference: ReferenceModel) -> None:
    images = [picture(80 + index) for index in range(6)]
    prompts: list[Any] = [{"prompt": text_about(1), "multi_modal_data": {"image": image}} for image in images]
    prompts[2] = {"prompt": text_about(1), "multi_modal_data": {"image": b"no picture"}}
    prompts[4] = {"prompt": text_about(1)}
    answers = client.generate(prompts, GREEDY, return_errors=True)
    for index, answer in enumerate(answers):
        if index == 2:
            assert isinstance(answer, BadMediaError)
            assert answer.param == "prompts[2].multi_modal_data.image"
        elif index == 4:
            assert isinstance(answer, InvalidRequestError) and answer.param == "prompts[4].multi_modal_data"
        else:
            assert not isinstance(answer, PerceptError)
            right = expected(reference, text_about(1), images[index])
            assert answer.outputs[0].token_ids == right
    with pytest.raises(PerceptError):
        client.generate(prompts, GREEDY)


VIDEO_MARK = "<|vision_start|><|video_pad|><|vision_end|>"
FRAMES = moving_picture(121, (84, 56), 6)


def tokens_of(client: Client, prompt: dict[str, Any]) -> list[int]:
    return client.generate(prompt, GREEDY)[0].outputs[0].token_ids


def test_frames_in_every_form_give_the_same_tokens(client: Client) -> None:
    content = [{"type": "video", "video": (FRAMES, {"fps": 2.0})}, "what happens?"]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    right = client.chat(messages, GREEDY).outputs[0].token_ids
    prompt = (
        "<|im_start|>system\ns<|im_end|>\n"
        f"<|im_start|>user\n{VIDEO_MARK}what happens?<|im_end|>\n<|im_start|>assistant\n"
    )
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    embeddings = client.encode((FRAMES, {"fps": 2.0}))
    assert embeddings.modality == "video" and embeddings["video_grid_thw"].shape == (1, 3)
    for value in (
        (FRAMES, {"fps": 2.0}),
        (torch.from_numpy(FRAMES), {"fps": 2}),
        [(pictures, {"fps": 2.0})],
        [(list(FRAMES), {"fps": 2.0})],
        embeddings,
        [dict(embeddings)],
        embeddings.torch(),
    ):
        assert tokens_of(client, {"prompt": prompt, "multi_modal_data": {"video": value}}) == right, type(
            value
        )
    fewer = {
        "prompt": prompt,
        "multi_modal_data": {"video": (FRAMES, {"fps": 2.0})},
        "media_io_kwargs": {"video": {"num_frames": 2}},
    }
    (answer,) = client.generate(fewer, GREEDY)
    (whole,) = client.generate({**fewer, "media_io_kwargs": {}}, GREEDY)
    assert answer.usage is not None and whole.usage is not None
    assert 0 < answer.usage.video_tokens < whole.usage.video_tokens


def test_pictures_and_videos_stand_where_the_prompt_says(client: Client) -> None:
    images, clip = [picture(122), picture(123)], (FRAMES, {"fps": 2.0})
    marks = f"{MARK}first{VIDEO_MARK}then{MARK}compare"
    content = [
        {"type": "image", "image": images[0]},
        "first",
        {"type": "video", "video": clip},
        "then",
        {"type": "image", "image": images[1]},
        "compare",
    ]
    right = client.chat([{"role": "system", "content": "s"}, {"role": "user", "content": content}], GREEDY)
    prompt = f"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n{marks}<|im_end|>\n<|im_start|>assistant\n"
    for data in ({"image": images, "video": clip}, {"video": [clip], "image": images}):
        assert tokens_of(client, {"prompt": prompt, "multi_modal_data": data}) == right.outputs[0].token_ids


def test_choices_logprobs_and_stops(client: Client) -> None:
    sampling = SamplingParams(n=3, temperature=1, seed=5, max_tokens=6, logprobs=2, ignore_eos=True)
    first, second = (client.generate("the red", sampling)[0] for _ in range(2))
    assert [one.token_ids for one in first.outputs] == [one.token_ids for one in second.outputs]
    assert len({tuple(one.token_ids) for one in first.outputs}) > 1
    for output in first.outputs:
        assert output.finish_reason == "length" and output.logprobs is not None
        assert [entry.chosen.token_id for entry in output.logprobs] == output.token_ids
        assert all(len(entry.top) == 2 for entry in output.logprobs)


def test_tokens_there_and_back(client: Client, reference: ReferenceModel) -> None:
    ids = client.tokenize("the red circle")
    assert ids == reference.tokenizer("the red circle")["input_ids"]
    assert client.detokenize(ids) == "the red circle"
    by_ids, by_text = client.generate([{"prompt_token_ids": ids}, "the red circle"], GREEDY)
    assert by_ids.outputs[0].token_ids == by_text.outputs[0].token_ids
    assert by_ids.prompt_token_ids == ids
    chat = client.tokenize([user("hello")])
    assert chat == reference.chat(template_messages([user("hello")]))


def test_the_model_says_what_it_takes(client: Client) -> None:
    model = client.model()
    assert (model.names, model.family, model.max_model_len) == ((MODEL,), "qwen2_vl", CONTEXT)
    assert model.limits["image"] == ITEM_LIMIT
    assert model.facts is not None and model.facts.embedding_fields["image"].required[0] == "image_embeds"


def test_mistakes_are_typed_and_named(client: Client) -> None:
    rows = np.zeros((4, 3), np.float32)
    for value, kind in (
        ({"image_embeds": rows, "image_grid_thw": [1, 4, 4]}, BadEmbeddingsError),
        ({"image_embeds": rows}, BadEmbeddingsError),
        (rows, BadEmbeddingsError),
        ([picture(1)] * (ITEM_LIMIT + 1), InvalidRequestError),
    ):
        with pytest.raises(kind) as caught:
            asked(client, value, text_about(1))
        assert str(caught.value.param).startswith("multi_modal_data"), caught.value.param
    with pytest.raises(InvalidRequestError) as refused:
        client.generate("a", SamplingParams(top_p=2))
    assert refused.value.param == "top_p"
    prompt = {
        "prompt": text_about(1),
        "multi_modal_data": {"image": picture(1)},
        "mm_processor_kwargs": {"unheard_of": 1},
    }
    with pytest.raises(InvalidRequestError, match="unheard_of") as refused:
        client.generate(prompt, GREEDY)
    assert refused.value.param == "mm_processor_kwargs"


def test_settings_change_the_rows(client: Client) -> None:
    image = picture(90, (168, 168))
    plain = client.encode(image)
    small = client.encode(image, mm_processor_kwargs={"max_pixels": 56 * 56})
    assert len(small["image_embeds"]) < len(plain["image_embeds"])


def test_many_threads_share_one_client(client: Client, reference: ReferenceModel) -> None:
    image = picture(91)
    right = expected(reference, text_about(1), image)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: asked(client, image, text_about(1)), range(24)))
    assert found == [right] * 24


def test_two_clients_and_a_closed_one(stack: UpStack) -> None:
    one, other = open_client(stack), open_client(stack)
    assert one.generate("a", GREEDY)[0].text == other.generate("a", GREEDY)[0].text
    one.close()
    one.close()
    with pytest.raises(UnavailableError, match="closed"):
        one.generate("a")
    assert other.generate("a", GREEDY)
    other.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "percept-client"]
    with open_client(stack) as again:
        assert again.generate("a", GREEDY)


def test_a_stream_left_early_frees_everything(client: Client, stack: UpStack) -> None:
    endless = SamplingParams(temperature=0, ignore_eos=True)
    for _ in client.chat([user("count")], endless, stream=True):
        break
    stack.wait_until_idle(5)


async def test_the_asynchronous_client_does_the_same(stack: UpStack, reference: ReferenceModel) -> None:
    image = picture(92)
    right = expected(reference, text_about(1), image)
    async with AsyncClient(**addresses(stack)) as client:
        prompt = {"prompt": text_about(1), "multi_modal_data": {"image": image}}
        answers = await client.generate([prompt] * 3, GREEDY)
        assert [answer.outputs[0].token_ids for answer in answers] == [right] * 3
        embeddings = await client.encode(image)
        prompt = {"prompt": text_about(1), "multi_modal_data": {"image": embeddings}}
        assert (await client.generate(prompt, GREEDY))[0].outputs[0].token_ids == right


def run_script(source: str, stack: UpStack) -> subprocess.Popen[str]:
    given = addresses(stack)
    environment = {
        **clean_environment(),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ENCODER": ",".join(given["encoder"]),
        "LLM": given["llm"],
    }
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_neither_torch_nor_transformers_nor_a_service_is_imported(stack: UpStack) -> None:
    pixels = base64.b64encode(np.asarray(picture(93)).tobytes()).decode()
    source = (
        "import os, sys, time; begin = time.perf_counter(); import percept\n"
        "assert not {'grpc', 'numpy', 'protos', 'percept.client'} & set(sys.modules)\n"
        "class Closed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.split('.')[0]\n"
        "        if top in {'torch', 'transformers', 'gateway', 'encoder_service', 'llm_service'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Closed())\n"
        "from percept import Client, SamplingParams\n"
        "with Client(encoder=os.environ['ENCODER'], llm=os.environ['LLM']) as client:\n"
        "    client.generate('hello', SamplingParams(max_tokens=2))\n"
        "    assert not {'numpy', 'PIL'} & set(sys.modules), 'text needs neither'\n"
        "    import base64, numpy\n"
        f"    pixels = numpy.frombuffer(base64.b64decode('{pixels}'), 'uint8').reshape(84, 112, 3)\n"
        f"    prompt = {{'prompt': {text_about(1)!r}, 'multi_modal_data': {{'image': pixels}}}}\n"
        "    client.generate(prompt, SamplingParams(max_tokens=2))\n"
        "    prompt['multi_modal_data'] = {'image': client.encode(pixels)}\n"
        "    print(client.generate(prompt, SamplingParams(max_tokens=2))[0].usage.image_tokens)\n"
    )
    process = run_script(source, stack)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(out) > 0 and not err


def test_a_script_that_does_not_close_ends_all_the_same(stack: UpStack) -> None:
    source = (
        "import os; from percept import Client, SamplingParams\n"
        "client = Client(encoder=os.environ['ENCODER'], llm=os.environ['LLM'])\n"
        "endless, user = SamplingParams(ignore_eos=True), {'role': 'user', 'content': 'a'}\n"
        "deltas = client.chat([user], endless, stream=True)\n"
        "print(next(deltas).index)\n"
    )
    begin = time.monotonic()
    process = run_script(source, stack)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "0\n", "")
    assert time.monotonic() - begin < 20
    stack.wait_until_idle(5)


@pytest.mark.parametrize("call", ["generate(['a'] * 40, endless)", "chat([user], endless)", "stream()"])
def test_ctrl_c_cancels_and_ends(stack: UpStack, call: str) -> None:
    source = (
        "import os; from percept import Client, SamplingParams\n"
        "endless, user = SamplingParams(ignore_eos=True), {'role': 'user', 'content': 'a'}\n"
        "client = Client(encoder=os.environ['ENCODER'], llm=os.environ['LLM'])\n"
        "client.stream = lambda: [0 for _ in client.chat([user], endless, stream=True)]\n"
        "client.generate('a', SamplingParams(max_tokens=1))\n"
        "print('begun', flush=True)\n"
        "try:\n"
        f"    client.{call}\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', flush=True)\n"
        "    print(client.generate('a', SamplingParams(max_tokens=1))[0].outputs[0].finish_reason)\n"
    )
    process = run_script(source, stack)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 10
    while stack.llm_status().pending_request_count == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "stopped\nlength\n"), err
    assert time.monotonic() - begin < 10
    stack.wait_until_idle(5)


def test_the_example(stack: UpStack, reference: ReferenceModel, tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "picture.png"
    picture(94).save(path)
    given = addresses(stack)
    command = [sys.executable, str(repository / "examples" / "client.py")]
    flags = ["--encoder", given["encoder"][0], "--llm", given["llm"]]
    done = subprocess.run(
        [*command, *flags, str(path), "what is this?"],
        capture_output=True,
        text=True,
        timeout=90,
        env={**clean_environment(), "PYTHONPATH": os.fspath(repository), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
