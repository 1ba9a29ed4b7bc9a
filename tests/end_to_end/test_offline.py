"""`percept encode` and `percept generate` against the running services: whole, resumed, killed."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from percept import Client, SamplingParams
from tests.asking import picture
from tests.end_to_end.conftest import MODEL
from tests.stack import UpStack, clean_environment, free_port

pytestmark = pytest.mark.end_to_end


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "percept", *map(str, arguments)]


def percept(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=120,
        check=False,
    )


def encoder_flags(stack: UpStack) -> tuple[str, str]:
    return "--encoder", ",".join(service.address for service in stack.services("encoder"))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/a.png", "deep/c.webp")):
        picture(101 + index, (112, 84 + 28 * index)).save(folder / name, lossless=True)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_a_folder(stack: UpStack, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = percept("encode", media, "--out", out, *encoder_flags(stack))
    assert (done.returncode, done.stderr) == (0, "4 encoded, 0 were there\n")
    names = ["a.png", "b.png", "deep/a.png", "deep/c.webp"]
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [f"{name}.safetensors" for name in names]
    tensors = load_file(out / "a.png.safetensors")
    assert set(tensors) == {"image_embeds", "image_grid_thw"}
    assert str(tensors["image_grid_thw"].dtype) == "torch.int64"
    # What is there and whole stays; what is torn, foreign or of another content does not.
    before = {name: (out / f"{name}.safetensors").stat().st_mtime_ns for name in names}
    torn = out / "b.png.safetensors"
    torn.write_bytes(torn.read_bytes()[:-5])
    picture(150).save(media / "deep" / "a.png")
    again = percept("encode", media, "--out", out, *encoder_flags(stack))
    assert (again.returncode, again.stderr) == (0, "2 encoded, 2 were there\n")
    after = {name: (out / f"{name}.safetensors").stat().st_mtime_ns for name in names}
    assert [before[name] == after[name] for name in names] == [True, False, False, True]
    small = percept(
        "encode", media, "--out", out, *encoder_flags(stack), "--mm-processor-kwargs", '{"max_pixels":3136}'
    )
    assert small.stderr == "4 encoded, 0 were there\n"


def test_what_fails_does_not_end_the_others(stack: UpStack, media: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    files = [broken, media / "a.png", tmp_path / "none.png", media / "b.png"]
    done = percept("encode", *files, "--out", tmp_path / "out", *encoder_flags(stack))
    assert done.returncode == 1
    assert f"percept encode: {broken}: the bytes are not a picture" in done.stderr
    assert f"percept encode: {tmp_path / 'none.png'}: No such file" in done.stderr
    assert done.stderr.endswith("2 encoded, 0 were there, 2 failed\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png.safetensors", "b.png.safetensors"}
    together = percept("encode", *files, "--out", tmp_path / "all.safetensors", *encoder_flags(stack))
    assert together.returncode == 1 and not (tmp_path / "all.safetensors").exists()


def test_the_file_gives_the_answer_of_the_picture(stack: UpStack, media: Path, tmp_path: Path) -> None:
    target = tmp_path / "both.safetensors"
    files = [media / "a.png", media / "deep" / "c.webp"]
    assert percept("encode", *files, "--out", target, *encoder_flags(stack)).returncode == 0
    assert (
        percept("encode", *files, "--out", target, *encoder_flags(stack)).stderr
        == "0 encoded, 2 were there\n"
    )
    text = "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "compare<|im_end|>\n"
    greedy = SamplingParams(temperature=0, max_tokens=12)
    with Client(encoder=encoder_flags(stack)[1], llm=stack.services("llm")[0].address) as client:
        by_files, by_embeddings = client.generate(
            [{"prompt": text, "multi_modal_data": {"image": value}} for value in (files, target)], greedy
        )
    assert by_files.outputs[0].token_ids == by_embeddings.outputs[0].token_ids


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["none.png", "--out", "o", "--mm-processor-kwargs", "{"], 2, "--mm-processor-kwargs"),
        (["none.png", "--out", "o", "--media-io-kwargs", "[]"], 2, "--media-io-kwargs"),
        (["none.png", "--out", "o", "--modality", "smell"], 2, "--modality"),
        (["none.png", "--out", "o", "--encoder", "127.0.0.1:9"], 1, "percept encoder --model"),
    ],
)
def test_encode_says_what_is_wrong(arguments: list[str], status: int, reason: str) -> None:
    done = percept("encode", *arguments)
    assert done.returncode == status and reason in done.stderr and "Traceback" not in done.stderr


def request(custom_id: str, *parts: Any, **body: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": messages, **body},
    }


def write(path: Path, requests: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in requests), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a request was answered twice"
    return found


def test_requests_are_answered_with_media_of_a_folder(stack: UpStack, media: Path, tmp_path: Path) -> None:
    embeddings = media / "a.safetensors"
    assert percept("encode", media / "a.png", "--out", embeddings, *encoder_flags(stack)).returncode == 0
    data = "data:image/png;base64," + base64.b64encode((media / "a.png").read_bytes()).decode()
    parts: dict[str, Any] = {
        "path": {"type": "image_url", "image_url": {"url": "a.png"}},
        "data": {"type": "image_url", "image_url": {"url": data}},
        "embeddings": {"type": "image_embeds", "image_embeds": "a.safetensors"},
    }
    requests = [request(name, part, "what is this?") for name, part in parts.items()]
    requests += [request(f"text {index}", f"number {index}") for index in range(20)]
    requests.append(request("wrong", "hello", top_p=3))
    source, target = write(tmp_path / "requests.jsonl", requests), tmp_path / "answers.jsonl"
    flags = ["--input", source, "--output", target, "--url", stack.url, "--media-folder", media]
    done = percept("generate", *flags)
    told = "23 answered, 0 were there, 1 failed: the output has their errors, --retry-failed asks again\n"
    assert (done.returncode, done.stderr) == (1, told)
    answers = read(target)
    assert answers.keys() == {one["custom_id"] for one in requests}
    assert answers["wrong"]["response"]["status_code"] == 400
    assert answers["wrong"]["response"]["body"]["error"]["param"] == "top_p"
    texts = {name: answers[name]["response"]["body"]["choices"][0]["message"]["content"] for name in parts}
    assert len(set(texts.values())) == 1
    assert all(answers[name]["response"]["request_id"] and answers[name]["error"] is None for name in parts)
    # Nothing is left to ask; what failed is asked again where that is wanted.
    assert percept("generate", *flags).stderr == "0 answered, 24 were there\n"
    requests[-1] = request("wrong", "hello")
    write(source, requests)
    again = percept("generate", *flags, "--retry-failed")
    assert (again.returncode, again.stderr) == (0, "1 answered, 23 were there\n")
    assert read(target)["wrong"]["response"]["status_code"] == 200


def test_killed_it_goes_on_where_it_stopped(stack: UpStack, tmp_path: Path) -> None:
    requests = [request(str(index), f"number {index}", max_tokens=40, ignore_eos=True) for index in range(60)]
    source, target = write(tmp_path / "requests.jsonl", requests), tmp_path / "answers.jsonl"
    flags = ["--input", source, "--output", target, "--url", stack.url, "--concurrency", "4"]
    kills = 0
    for wanted in (5, 15):
        process = subprocess.Popen(
            command("generate", *flags), stderr=subprocess.PIPE, text=True, env=clean_environment()
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if target.exists() and target.read_bytes().count(b"\n") >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait(10)
    assert kills == 2
    with target.open("ab") as file:
        file.write(b'{"id": "batch_req_1", "custom_id": "59", "resp')  # As a kill within a write leaves it.
    here = len(read_whole(target))
    assert 15 <= here < 60
    done = percept("generate", *flags)
    assert (done.returncode, done.stderr) == (0, f"{60 - here} answered, {here} were there\n")
    assert len(read(target)) == 60
    stack.wait_until_idle(10)


def read_whole(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_ctrl_c_ends_it_and_loses_nothing(stack: UpStack, tmp_path: Path) -> None:
    requests = [request(str(index), f"number {index}", max_tokens=40, ignore_eos=True) for index in range(60)]
    source, target = write(tmp_path / "requests.jsonl", requests), tmp_path / "answers.jsonl"
    flags = ["--input", source, "--output", target, "--url", stack.url, "--concurrency", "4"]
    process = subprocess.Popen(
        command("generate", *flags), stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (target.exists() and read_whole(target)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert 1 <= len(read(target)) < 60
    stack.wait_until_idle(10)


def test_mistakes_of_the_input_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    source = write(tmp_path / "requests.jsonl", [request("a", "x"), request("a", "y")])
    with source.open("a") as file:
        file.write("{\n")
    picture_request = request("b", {"type": "image_url", "image_url": {"url": "../secret.png"}})
    with source.open("a") as file:
        file.write(json.dumps(picture_request) + "\n")
    target = tmp_path / "answers.jsonl"
    nobody = f"http://127.0.0.1:{free_port()}"
    flags = ["--input", source, "--output", target, "--url", nobody, "--media-folder", tmp_path]
    done = percept("generate", *flags)
    assert done.returncode == 2 and not target.exists()
    told = done.stderr.splitlines()
    assert [line.split(": ")[2] for line in told] == ["line 2", "line 3", "line 4"]
    assert "that of line 1" in told[0] and "no JSON" in told[1] and "leads out" in told[2]


def test_a_broken_file_of_answers_is_left_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "requests.jsonl", [request("a", "x")])
    target = tmp_path / "answers.jsonl"
    target.write_text("something else\n")
    done = percept("generate", "--input", source, "--output", target)
    assert done.returncode == 2 and "line 1 is no answer" in done.stderr
    assert target.read_text() == "something else\n"


def test_full_gateways_are_asked_again(tiny_checkpoint: Any, tmp_path: Path) -> None:
    flags = ["--max-pending-requests", "2", "--workers", "1", "--kv-cache-gib", "0.05"]
    small = UpStack(tiny_checkpoint("qwen2_vl"), "--served-model-name", MODEL, *flags)
    try:
        requests = [request(str(index), f"number {index}") for index in range(40)]
        source, target = write(tmp_path / "requests.jsonl", requests), tmp_path / "answers.jsonl"
        done = percept(
            "generate", "--input", source, "--output", target, "--url", small.url, "--concurrency", "16"
        )
        assert (done.returncode, done.stderr) == (0, "40 answered, 0 were there\n")
        assert {line["response"]["status_code"] for line in read(target).values()} == {200}
        # The client waits as patiently.
        with Client(
            encoder=small.services("encoder")[0].address,
            llm=small.services("llm")[0].address,
            max_concurrency=16,
        ) as client:
            answers = client.generate(
                [f"number {index}" for index in range(40)], SamplingParams(max_tokens=4)
            )
            assert len(answers) == 40
    finally:
        small.stop()


def test_the_progress_bar_is_for_terminals(stack: UpStack, tmp_path: Path) -> None:
    source = write(tmp_path / "requests.jsonl", [request(str(index), "hello") for index in range(3)])
    flags = ["--input", source, "--output", tmp_path / "answers.jsonl", "--url", stack.url]
    shown, theirs = os.openpty()
    process = subprocess.Popen(
        command("generate", *flags), stderr=theirs, env={**clean_environment(), "TERM": "xterm"}
    )
    os.close(theirs)
    told = b""
    while True:
        try:
            piece = os.read(shown, 4096)
        except OSError:  # The other end is closed.
            break
        if not piece:
            break
        told += piece
    os.close(shown)
    assert process.wait(60) == 0
    assert b"requests" in told and b"3/3" in told and b"3 answered" in told
