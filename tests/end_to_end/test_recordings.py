"""Recordings through all three services: every encoding of one, every way to send it, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from encoder_service.media.sound_pieces import piece_starts
from percept import Client, Embeddings, SamplingParams
from tests.asking import audio_part, sound, user, wave_file
from tests.end_to_end.test_offline import command, percept
from tests.stack import UpStack, clean_environment
from tests.unit.encoder_service.sounds import MUXED, muxed, written
from tests.unit.encoder_service.videos import make_video

pytestmark = pytest.mark.end_to_end

RATE = 16_000
TOKENS = 8
ASKED = "what is this?"


@pytest.fixture(scope="module")
def hearing(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpStack]:
    """Services with a model that hears, which take files of one folder."""
    running = UpStack(
        tiny_checkpoint("qwen2_audio"),
        *("--served-model-name", "tiny", "--workers", "1", "--kv-cache-gib", "0.05"),
        *("--limit-mm-per-prompt", "audio=3", "--max-audio-seconds", "20", "--max-audio-mib", "2"),
        *("--allowed-local-media-path", str(tmp_path_factory.mktemp("shown"))),
        "--trust-request-mm-kwargs",
    )
    yield running
    running.stop()


def ask(stack: UpStack, *parts: Any, **fields: Any) -> httpx.Response:
    body = {"messages": [user(*parts)], "temperature": 0, "max_completion_tokens": TOKENS, **fields}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def answer(stack: UpStack, *parts: Any, **fields: Any) -> str:
    response = ask(stack, *parts, **fields)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def part_of(payload: bytes, form: str = "wav") -> dict[str, Any]:
    data = base64.b64encode(payload).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def whole_numbers(seconds: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Samples that 16 bits hold exactly, (samples, 1)."""
    values = np.round(sound(3, seconds).astype(np.float64) * 32768) / 32768
    return values[:, None]


def test_every_encoding_without_loss_gives_the_same_answer(hearing: UpStack) -> None:
    samples = whole_numbers()
    expected = answer(hearing, part_of(written(samples, kind="wav float")), ASKED)
    for kind in ("wav 16", "wav 24", "wav 32", "wav double", "flac", "flac 24", "aiff", "caf", "rf64", "au"):
        assert answer(hearing, part_of(written(samples, kind=kind), "mp3"), ASKED) == expected, kind
    for kind in ("mov pcm float", "mkv flac"):
        assert answer(hearing, part_of(muxed(samples, kind=kind), "m4a"), ASKED) == expected, kind


def test_every_encoding_with_loss_is_answered(hearing: UpStack) -> None:
    samples = np.repeat(sound(3, 1.0, 48_000)[:, None], 2, axis=1).astype(np.float64)
    payloads = [written(samples, 48_000, kind) for kind in ("mp3", "ogg vorbis", "ogg opus", "wav mu-law")]
    payloads += [muxed(samples, 48_000, kind) for kind in MUXED]
    for payload in payloads:
        assert answer(hearing, part_of(payload), ASKED)


async def test_the_official_client(hearing: UpStack) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{hearing.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        asked = [user(audio_part(sound(5, 1.0)), audio_part(sound(6, 0.5)), ASKED)]
        whole = await client.chat.completions.create(
            model="tiny",
            messages=asked,
            temperature=0,
            max_completion_tokens=TOKENS,  # type: ignore[arg-type]
        )
        assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
        # 100 frames a second, 2 for a row of the encoder, 2 of these for a row of the prompt.
        assert whole.usage.prompt_tokens_details.audio_tokens == 25 + 12
        text = ""
        async for event in await client.chat.completions.create(
            model="tiny",
            messages=asked,
            temperature=0,
            max_completion_tokens=TOKENS,
            stream=True,  # type: ignore[arg-type]
        ):
            text += event.choices[0].delta.content or ""
        assert text == whole.choices[0].message.content


def test_ways_to_send_one(hearing: UpStack, tmp_path: Path) -> None:
    samples = sound(7, 1.0)
    payload = wave_file(samples, RATE)
    expected = answer(hearing, audio_part(samples), ASKED)
    data = base64.b64encode(payload).decode()
    for part in (
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}},
        {"audio_url": f"data:;base64,{data}"},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{data}"}},
    ):
        assert answer(hearing, part, ASKED) == expected

    file = tmp_path / "song.wav"
    file.write_bytes(payload)
    encoder, llm = hearing.services("encoder")[0], hearing.services("llm")[0]
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)
    with Client(encoder=encoder.address, llm=llm.address) as client:
        values: list[Any] = [
            file,
            str(file),
            payload,
            (samples, RATE),
            {"array": samples.astype(np.float64), "sampling_rate": RATE},
            (np.stack([samples, samples]), RATE),
            f"data:audio/wav;base64,{data}",
        ]
        embeddings = client.encode(file)
        assert isinstance(embeddings, Embeddings) and embeddings.modality == "audio"
        assert embeddings["audio_embeds"].shape == (25, 64)
        for value in [*values, embeddings]:
            messages = [{"role": "user", "content": [{"type": "audio", "audio": value}, ASKED]}]
            assert client.chat(messages, greedy).outputs[0].text == expected, type(value)
        messages = [user(audio_part(samples), ASKED)]
        assert client.chat(messages, greedy).outputs[0].text == expected
        prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>" + ASKED
        (made,) = client.generate({"prompt": prompt, "multi_modal_data": {"audio": (samples, RATE)}}, greedy)
        (again,) = client.generate({"prompt": prompt, "multi_modal_data": {"audio": [file]}}, greedy)
        assert made.outputs[0].token_ids == again.outputs[0].token_ids


def test_the_command_line(hearing: UpStack, tmp_path: Path) -> None:
    samples = sound(8, 1.0)
    folder = tmp_path / "songs"
    folder.mkdir()
    (folder / "one.wav").write_bytes(wave_file(samples, RATE))
    (folder / "two.flac").write_bytes(written(whole_numbers(0.5), kind="flac"))
    expected = answer(hearing, audio_part(samples), ASKED)
    told = percept(
        *("chat", "--url", hearing.url, "--temperature", "0", "--max-tokens", str(TOKENS)),
        *("--audio", folder / "one.wav", ASKED),
    )
    assert (told.returncode, told.stdout.rstrip("\n")) == (0, expected.rstrip("\n"))

    encoder = hearing.services("encoder")[0].address
    done = percept("encode", folder, "--out", tmp_path / "out", "--encoder", encoder)
    assert (done.returncode, done.stderr) == (0, "2 encoded, 0 were there\n")
    loaded = Embeddings.load(tmp_path / "out" / "two.flac.safetensors")
    assert (loaded.modality, loaded["audio_embeds"].shape) == ("audio", (12, 64))

    (tmp_path / "out" / "one.wav.safetensors").rename(folder / "one.safetensors")
    parts = [
        {"type": "audio_url", "audio_url": {"url": "one.wav"}},
        {"type": "audio_embeds", "audio_embeds": "one.safetensors"},
    ]
    lines = [
        {
            "custom_id": str(index),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [user(part, ASKED)], "temperature": 0, "max_completion_tokens": TOKENS},
        }
        for index, part in enumerate(parts)
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = subprocess.run(
        command(
            *("generate", "--input", tmp_path / "requests.jsonl", "--output", tmp_path / "answers.jsonl"),
            *("--url", hearing.url, "--media-folder", folder),
        ),
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in answers]
    assert texts == [expected, expected]


def float_wave(value: float) -> bytes:
    samples = sound(9, 0.5)
    samples[100] = value
    return wave_file(samples, RATE)


def endless_opus() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((3_000_000, 1), np.float32), 8_000, format="OGG", subtype="OPUS")
    return buffer.getvalue()


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "text named wav": (lambda: part_of(b"this is a text, not a recording " * 20), 400),
    "an empty file": (lambda: part_of(b""), 400),
    "a picture": (lambda: part_of(b"\x89PNG\r\n\x1a\n" + bytes(100)), 415),
    "a video without sound": (lambda: part_of(make_video(4)), 400),
    "one sample": (lambda: part_of(wave_file(sound(9, 1 / RATE), RATE)), 400),
    "not a number": (lambda: part_of(float_wave(float("nan"))), 400),
    "infinity": (lambda: part_of(float_wave(float("inf"))), 400),
    "a cut file": (lambda: part_of(wave_file(sound(9, 1.0), RATE)[:-3000]), 400),
    "too long for the model": (lambda: audio_part(sound(9, 4.5)), 413),
    "too long for the service": (lambda: part_of(endless_opus()), 413),
    "too large for the gateway": (lambda: audio_part(sound(9, 40.0)), 413),
    "not base64": (lambda: {"type": "input_audio", "input_audio": {"data": "@@", "format": "wav"}}, 400),
    "embeddings of another width": (
        lambda: {"type": "audio_embeds", "audio_embeds": {"audio_embeds": "AAAA"}},
        400,
    ),
    "a picture's part": (
        lambda: {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        400,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_the_next_is_answered(hearing: UpStack, name: str) -> None:
    make, status = WRONG[name]
    refused = ask(hearing, make(), ASKED)
    assert refused.status_code == status, refused.text
    error = refused.json()["error"]
    assert error["message"] and error["param"].startswith("messages[0].content[0].")
    assert answer(hearing, audio_part(sound(10, 0.5)), ASKED)


def test_other_shapes_of_sound_are_heard(hearing: UpStack) -> None:
    """Silence, 8 kHz, 192 kHz, 5.1 channels, and all at once with text alone."""
    samples = {8_000: sound(11, 1.0, 8_000), 192_000: sound(11, 1.0, 192_000)}
    parts = [
        audio_part(np.zeros(RATE, np.float32)),
        *(audio_part(values, rate) for rate, values in samples.items()),
        audio_part(np.repeat(sound(11, 1.0)[:, None], 6, axis=1)),
    ]
    texts = [answer(hearing, part, ASKED) for part in parts]
    # Six channels alike are one.
    assert texts[-1] == answer(hearing, audio_part(sound(11, 1.0)), ASKED)
    bodies = [(part, ASKED) for part in parts] + [("only text",)] * 4

    async def together() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(answer, hearing, *body) for body in bodies))

    assert asyncio.run(together())[: len(parts)] == texts


def test_speech_is_written_down_in_conversation(hearing: UpStack) -> None:
    """A model without prompts of its own for it is asked in words, about every piece of what is too long."""
    asked = "Transcribe the French audio into text."
    client = openai.OpenAI(base_url=f"{hearing.url}/v1", api_key="none", max_retries=0, timeout=60)
    few = {"max_completion_tokens": TOKENS}
    short, long = sound(14, 2.0), sound(15, 9.5)
    told = client.audio.transcriptions.create(
        file=("a.wav", wave_file(short, RATE)), model="tiny", language="fr", extra_body=few
    )
    assert told.text == answer(hearing, audio_part(short), asked).strip()
    starts = piece_starts(long, RATE, 4 * RATE)
    texts = [
        answer(hearing, audio_part(long[start:end]), asked).strip()
        for start, end in itertools.pairwise([*starts, len(long)])
    ]
    verbose = client.audio.transcriptions.create(
        file=("a.wav", wave_file(long, RATE)),
        model="tiny",
        language="fr",
        response_format="verbose_json",
        extra_body=few,
    )
    assert len(texts) > 2 and verbose.text == " ".join(texts)
    assert verbose.segments is not None
    assert [round(part.start * RATE) for part in verbose.segments] == pytest.approx(starts, abs=10)
    assert (verbose.language, verbose.duration) == ("french", 9.5)
    with pytest.raises(openai.BadRequestError, match="does not tell when"):
        client.audio.transcriptions.create(
            file=("a.wav", wave_file(short, RATE)), model="tiny", response_format="srt"
        )


def test_limits_and_settings(hearing: UpStack) -> None:
    few = [audio_part(sound(seed, 0.3)) for seed in range(4)]
    refused = ask(hearing, *few, ASKED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_audios")
    long = audio_part(sound(12, 5.0))
    cut = answer(hearing, long, ASKED, mm_processor_kwargs={"truncation": True})
    assert cut == answer(hearing, audio_part(sound(12, 5.0)[:64_000]), ASKED)
    refused = ask(hearing, long, ASKED, mm_processor_kwargs={"use_audio_in_video": True})
    assert refused.json()["error"]["param"] == "mm_processor_kwargs.use_audio_in_video"


def test_nothing_is_held_afterwards(hearing: UpStack) -> None:
    hearing.wait_until_idle(5)
