"""Recordings written down through all three services, by the official client, against transformers."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch

from encoder_service.media.sound_pieces import piece_starts
from percept import Client, PerceptError
from tests.asking import sound, wave_file
from tests.end_to_end.test_offline import percept
from tests.families.whisper import SECONDS
from tests.stack import UpStack
from tests.unit.encoder_service.sounds import written
from tests.unit.encoder_service.videos import make_video

pytestmark = pytest.mark.end_to_end

RATE = 16_000
TOKENS = 40
ONCE = {"temperature_increment_on_fallback": 0}
"""A model that was never trained is unsure of all that it writes."""
FEW = {"max_completion_tokens": TOKENS, **ONCE}


class Reference:
    """The same checkpoint in plain transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        self.processor: Any = WhisperProcessor.from_pretrained(folder)
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def tokens(self, samples: Any, *, times: bool = False, **said: Any) -> list[int]:
        """The answer's tokens, without the prompt."""
        features = self.features(samples)
        if prompt := said.pop("prompt", None):
            said["prompt_ids"] = self.processor.get_prompt_ids(prompt, return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(
                input_features=features,
                return_timestamps=times,
                do_sample=False,
                max_new_tokens=TOKENS,
                force_unique_generate_call=True,
                **{"task": "transcribe", **said},
            )[0].tolist()
        start = output.index(self.model.generation_config.decoder_start_token_id)
        ids: list[int] = output[start + (3 if times else 4) :]
        return ids

    def features(self, samples: Any) -> Any:
        return self.processor.feature_extractor(samples, sampling_rate=RATE, return_tensors="pt")[
            "input_features"
        ]

    def language(self, samples: Any) -> str:
        """The code of what is spoken."""
        (found,) = self.model.detect_language(self.features(samples)).tolist()
        text: str = self.processor.tokenizer.convert_ids_to_tokens(found)
        return text.strip("<|>")

    def silence(self, samples: Any) -> float:
        """The probability, where the model's turn begins, that nobody speaks."""
        ids = torch.tensor([[self.model.generation_config.decoder_start_token_id]])
        with torch.no_grad():
            logits = self.model(input_features=self.features(samples), decoder_input_ids=ids).logits
        token = self.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
        return float(torch.softmax(logits[0, -1].float(), dim=-1)[token])

    def text(self, ids: list[int]) -> str:
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def offsets(self, ids: list[int]) -> list[tuple[str, float, float]]:
        found = self.processor.tokenizer.decode(ids, output_offsets=True)["offsets"]
        return [(part["text"], *part["timestamp"]) for part in found if part["text"].strip()]

    def words(self, samples: Any, language: str) -> list[tuple[str, float, float]]:
        """Of each segment, with their times."""
        from transformers.models.whisper.tokenization_whisper import _collate_word_timestamps

        # Only plain attention gives its weights away.
        self.model.set_attn_implementation("eager")
        with torch.no_grad():
            output = self.model.generate(
                **self.processor.feature_extractor(
                    samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
                ),
                language=language,
                task="transcribe",
                return_timestamps=True,
                return_token_timestamps=True,
                do_sample=False,
                max_new_tokens=TOKENS,
                force_unique_generate_call=True,
            )
        ids, ends = output["sequences"][0].tolist()[3:], output["token_timestamps"][0].tolist()[3:]
        times = list(zip([0.0, *ends], ends, strict=False))
        zero = self.processor.tokenizer.convert_tokens_to_ids("<|0.00|>")
        runs: list[list[int]] = [[]]
        for index, token in enumerate(ids):
            if token >= zero and index and ids[index - 1] >= zero:
                runs.append([])
            if token < zero and token not in self.processor.tokenizer.all_special_ids:
                runs[-1].append(index)
        found = []
        for run in runs:
            told = _collate_word_timestamps(
                self.processor.tokenizer, [ids[i] for i in run], [times[i] for i in run], "german", False
            )
            found += [(word["text"].strip(), *word["timestamp"]) for word in told if word["text"].strip()]
        return found


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("whisper")


@pytest.fixture(scope="module")
def writing(folder: Path) -> Iterator[UpStack]:
    running = UpStack(
        folder,
        *("--served-model-name", "tiny", "--workers", "2", "--kv-cache-gib", "0.05"),
        *("--max-audio-seconds", "60", "--max-audio-mib", "8", "--max-parallel-pieces", "3"),
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture
def client(writing: UpStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{writing.url}/v1", api_key="none", max_retries=0, timeout=60)


def file_of(samples: Any, rate: int = RATE) -> tuple[str, bytes]:
    return "song.wav", wave_file(samples, rate)


def write_down(client: openai.OpenAI, file: tuple[str, bytes], **fields: Any) -> Any:
    return client.audio.transcriptions.create(file=file, model="tiny", extra_body=FEW, **fields)


@pytest.mark.parametrize("language", [None, "de", "french"])
def test_text_is_that_of_transformers(
    client: openai.OpenAI, reference: Reference, language: str | None
) -> None:
    for seed in range(4):
        samples = sound(seed, 1.0 + 0.7 * seed)
        said = {"language": language} if language else {}
        expected = reference.text(reference.tokens(samples, **said))
        assert write_down(client, file_of(samples), **said).text == expected.strip()


def test_what_was_said_before(client: openai.OpenAI, reference: Reference) -> None:
    samples = sound(5, 2.0)
    expected = reference.text(reference.tokens(samples, language="en", prompt="the colour of a circle"))
    got = write_down(client, file_of(samples), language="en", prompt="the colour of a circle").text
    assert got == expected.strip() != write_down(client, file_of(samples), language="en").text


def test_a_translation(client: openai.OpenAI, reference: Reference) -> None:
    samples = sound(2, 2.4)
    expected = reference.text(reference.tokens(samples, task="translate"))
    assert expected.strip() != reference.text(reference.tokens(samples)).strip()
    got = client.audio.translations.create(file=file_of(samples), model="tiny", extra_body=FEW)
    assert got.text == expected.strip()


def test_segments_are_those_of_transformers(client: openai.OpenAI, reference: Reference) -> None:
    for seed in range(5):
        samples = sound(10 + seed, SECONDS)
        expected = reference.offsets(reference.tokens(samples, times=True))
        assert expected
        got = write_down(client, file_of(samples), response_format="verbose_json")
        found = [(part.text, part.start, part.end) for part in got.segments]
        # What no time ends is ours alone.
        assert len(found) - len(expected) in (0, 1)
        for (text, *times), (known, *known_times) in zip(found, expected, strict=False):
            assert text == known
            assert times == pytest.approx(known_times)
        assert got.duration == SECONDS
        assert got.usage.seconds == SECONDS
        spoken = {"en": "english", "de": "german", "fr": "french"}[reference.language(samples)]
        assert got.language == spoken
        silence = reference.silence(samples)
        # Whatever is known of the language: the model's turn begins before it.
        said = write_down(client, file_of(samples), response_format="verbose_json", language="de")
        for part in (*got.segments, *said.segments):
            assert 0 < part.no_speech_prob == pytest.approx(silence, rel=1e-3)


def test_words_are_those_of_transformers(client: openai.OpenAI, reference: Reference) -> None:
    for seed in range(3):
        samples = sound(15 + seed, SECONDS)
        expected = reference.words(samples, "de")
        fields = {"language": "de", "response_format": "verbose_json"}
        both = write_down(client, file_of(samples), **fields, timestamp_granularities=["word", "segment"])
        words = [(word.word, word.start, word.end) for word in both.words]
        assert [text for text, *_ in words] == [text for text, *_ in expected]
        assert [time for _, *times in words for time in times] == pytest.approx(
            [time for _, *times in expected for time in times], abs=2e-3
        )
        plain = write_down(client, file_of(samples), **fields)
        assert both.segments == plain.segments and plain.words is None
        alone = write_down(client, file_of(samples), **fields, timestamp_granularities=["word"])
        assert alone.words == both.words and alone.segments is None


def test_words_of_a_long_recording_stay_in_their_pieces(client: openai.OpenAI) -> None:
    samples = long_recording(23, 11.0)
    answer = write_down(
        client,
        file_of(samples),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    starts = piece_starts(samples, RATE, SECONDS * RATE)
    edges = [start / RATE for start in starts] + [11.0]
    for word in answer.words:
        assert 0 <= word.start <= word.end <= 11.0
        assert any(a - 1e-3 <= word.start <= word.end <= b + 1e-3 for a, b in itertools.pairwise(edges))
    pieces = {max(edge for edge in edges if edge <= word.start) for word in answer.words}
    assert len(pieces) > 1


def long_recording(seed: int, seconds: float) -> Any:
    """Sound with pauses."""
    samples = sound(seed, seconds).copy()
    for start in np.arange(3.3, seconds, 3.3):
        samples[int(start * RATE) : int((start + 0.2) * RATE)] = 0
    return samples


def test_a_long_recording_is_its_pieces(client: openai.OpenAI, reference: Reference) -> None:
    samples = long_recording(20, 17.0)
    starts = piece_starts(samples, RATE, SECONDS * RATE)
    assert len(starts) > 4
    pieces = [samples[a:b] for a, b in zip(starts, [*starts[1:], len(samples)], strict=True)]
    language = reference.language(pieces[0])
    texts = [reference.text(reference.tokens(piece, language=language)) for piece in pieces]
    assert write_down(client, file_of(samples)).text == "".join(texts).strip()

    expected = []
    for start, piece in zip(starts, pieces, strict=True):
        length = len(piece) / RATE
        for text, begin, end in reference.offsets(reference.tokens(piece, times=True, language=language)):
            expected.append((text, start / RATE + min(begin, length), start / RATE + min(end, length)))
    got = write_down(client, file_of(samples), response_format="verbose_json")
    found = [
        (part.text, pytest.approx(part.start, abs=1e-3), pytest.approx(part.end, abs=1e-3))
        for part in got.segments
    ]
    assert [part for part in expected if part not in found] == []
    begins = [part.start for part in got.segments]
    assert begins == sorted(begins) and got.segments[-1].end <= 17.0
    assert {part.seek for part in got.segments} == {round(start / RATE * 100) for start in starts}
    assert got.duration == 17.0


def test_streaming_adds_up(client: openai.OpenAI) -> None:
    for samples in (sound(21, 1.5), long_recording(22, 9.0)):
        whole = write_down(client, file_of(samples)).text
        *deltas, done = write_down(client, file_of(samples), stream=True)
        assert "".join(event.delta for event in deltas) == done.text == whole
        assert done.type == "transcript.text.done"
        assert done.usage.seconds == np.ceil(len(samples) / RATE)


async def test_many_at_once_are_as_alone(writing: UpStack, client: openai.OpenAI) -> None:
    recordings = [long_recording(30 + seed, 2.0 + 2.5 * (seed % 4)) for seed in range(8)]
    alone = [write_down(client, file_of(samples)).text for samples in recordings]
    async with openai.AsyncOpenAI(
        base_url=f"{writing.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as asking:
        together = await asyncio.gather(
            *(
                asking.audio.transcriptions.create(file=file_of(samples), model="tiny", extra_body=FEW)
                for samples in recordings
            )
        )
    assert [answer.text for answer in together] == alone


def ogg(samples: Any, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def test_every_shape_of_sound(client: openai.OpenAI) -> None:
    """Silence, one sample, 8 kHz, 192 kHz, 5.1 channels, 24 bits, what has another name."""
    samples = np.round(sound(40, 1.0).astype(np.float64) * 32768) / 32768
    expected = write_down(client, file_of(samples.astype(np.float32))).text
    alike = {
        "six channels": file_of(np.repeat(samples[:, None], 6, axis=1).astype(np.float32)),
        "24 bits": ("song.wav", written(samples[:, None], kind="wav 24")),
        "flac named mp3": ("song.mp3", written(samples[:, None], kind="flac")),
    }
    for name, file in alike.items():
        assert write_down(client, file).text == expected, name
    others = {
        "silence": file_of(np.zeros(RATE, np.float32)),
        "long silence": file_of(np.zeros(10 * RATE, np.float32)),
        "one sample": file_of(sound(41, 1 / RATE)),
        "8 kHz": file_of(sound(42, 1.0, 8_000), 8_000),
        "192 kHz": file_of(sound(42, 1.0, 192_000), 192_000),
        "opus": ("song.ogg", ogg(sound(42, 1.0, 48_000), 48_000)),
    }
    for name, file in others.items():
        answer = write_down(client, file, response_format="verbose_json")
        assert all(0 <= part.start <= part.end <= answer.duration for part in answer.segments), name


WRONG: dict[str, tuple[Callable[[], bytes], int]] = {
    "text named wav": (lambda: b"this is a text, not a recording " * 20, 400),
    "a video without sound": (lambda: make_video(4), 400),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), 415),
    "a cut file": (lambda: wave_file(sound(9, 1.0), RATE)[:-3000], 400),
    "an hour in a small file": (lambda: ogg(np.zeros((3_600_000, 1), np.float32), 8_000), 413),
    "too large": (lambda: bytes(9 * 1024 * 1024), 413),
    "empty": (lambda: b"", 400),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_the_next_is_answered(
    writing: UpStack, client: openai.OpenAI, name: str
) -> None:
    make, status = WRONG[name]
    with pytest.raises(openai.APIStatusError) as caught:
        write_down(client, ("song.wav", make()))
    assert caught.value.status_code == status, caught.value
    assert caught.value.param in ("file", None)
    assert write_down(client, file_of(sound(9, 0.5))).usage.seconds == 1


def test_requests_that_are_wrong(client: openai.OpenAI) -> None:
    file = file_of(sound(9, 0.5))
    for fields, param in (
        ({"language": "klingon"}, "language"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": 3}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            write_down(client, file, **fields)
        assert caught.value.param == param
    most = 2**31 - 1
    with pytest.raises(openai.BadRequestError, match=f"so {most} more tokens do not fit") as caught:
        client.audio.transcriptions.create(
            file=file, model="tiny", extra_body={"max_completion_tokens": most}
        )
    assert (caught.value.param, caught.value.code) == ("max_completion_tokens", "context_length_exceeded")
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(file=file, model="another")


def test_what_the_model_is_unsure_of_is_tried_again(client: openai.OpenAI) -> None:
    """A model that was never trained always is: the last try counts, unless one says how."""
    file = file_of(sound(21, 2.0))
    for fields, expected in (
        ({}, 1.0),
        ({"temperature": 0}, 1.0),
        ({"temperature": 0.4}, 0.4),
        ({"extra_body": {**FEW, "temperature_increment_on_fallback": 0.5}}, 1.0),
        ({"extra_body": FEW}, 0.0),
    ):
        asked = {"extra_body": {"max_completion_tokens": TOKENS}, **fields}
        got = client.audio.transcriptions.create(
            file=file, model="tiny", response_format="verbose_json", **asked
        )
        assert got.segments
        assert {part.temperature for part in got.segments} == {expected}, fields


async def test_a_client_that_leaves(writing: UpStack) -> None:
    """All that its pieces held is free soon."""
    url, files = f"{writing.url}/v1/audio/transcriptions", {"file": file_of(long_recording(50, 30.0))}
    for stream in ("false", "true"):
        data = {"stream": stream, "temperature": "1"}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4), httpx.AsyncClient(trust_env=False) as asking:
                await asking.post(url, files=files, data=data)
        await asyncio.to_thread(writing.wait_until_idle, 5)


def test_nothing_is_held_afterwards(writing: UpStack) -> None:
    writing.wait_until_idle(5)


def test_the_command_line(writing: UpStack, client: openai.OpenAI, tmp_path: Path) -> None:
    folder = tmp_path / "songs"
    (folder / "deep").mkdir(parents=True)
    files = {"one.wav": sound(61, 1.5), "deep/two.wav": long_recording(62, 9.0)}
    for name, samples in files.items():
        (folder / name).write_bytes(wave_file(samples, RATE))
    whole = {
        name: client.audio.transcriptions.create(file=file_of(samples), model="tiny", extra_body=ONCE).text
        for name, samples in files.items()
    }
    once = ("--url", writing.url, "--temperature-increment-on-fallback", "0")
    told = percept("transcribe", folder / "one.wav", folder / "deep" / "two.wav", *once)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "".join(f"{text}\n" for text in whole.values())
    told = percept("transcribe", folder / "one.wav", *once, "--format", "json", "--translate")
    assert json.loads(told.stdout)["usage"] == {"type": "duration", "seconds": 2}

    (folder / "broken.wav").write_bytes(b"no recording")
    out = ("transcribe", folder, "--out", tmp_path / "out", *once, "--language", "en")
    done = percept(*out, "--format", "srt")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "2 transcribed, 0 were there, 1 failed"
    assert "broken.wav: 400: " in done.stderr
    again = percept(*out, "--format", "srt")
    assert again.stderr.splitlines()[-1] == "0 transcribed, 2 were there, 1 failed"
    expected = client.audio.transcriptions.create(
        file=file_of(files["deep/two.wav"]),
        model="tiny",
        language="en",
        response_format="srt",
        extra_body=ONCE,
    )
    assert (tmp_path / "out" / "deep" / "two.wav.srt").read_text() == expected

    refused = percept("transcribe", folder / "broken.wav", "--url", writing.url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "broken.wav: 400: the bytes are no audio" in refused.stderr
    for words, status in (
        ((tmp_path / "nowhere.wav",), 1),
        ((folder / "one.wav", "--format", "xml"), 2),
        ((tmp_path / "out" / "deep", "--out", tmp_path / "other"), 2),
    ):
        assert percept("transcribe", *words, "--url", writing.url).returncode == status


def test_the_python_client(writing: UpStack, client: openai.OpenAI, tmp_path: Path) -> None:
    encoder, llm = writing.services("encoder")[0], writing.services("llm")[0]
    long = long_recording(71, 9.0)
    (tmp_path / "song.wav").write_bytes(wave_file(long, RATE))
    with Client(encoder=encoder.address, llm=llm.address) as own:
        for language in ("", "de"):
            told = own.transcribe((long, RATE), language=language, words=True, **ONCE)
            fields: dict[str, Any] = {"language": language} if language else {}
            expected = client.audio.transcriptions.create(
                file=file_of(long),
                model="tiny",
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
                extra_body=ONCE,
                **fields,
            )
            assert (told.text, told.language, told.duration_s) == (expected.text, expected.language, 9.0)
            assert [segment.text for segment in told.segments] == [part.text for part in expected.segments]
            assert [word.text.strip() for word in told.words] == [word.word for word in expected.words]
            assert [word.end_s for word in told.words] == pytest.approx(
                [word.end for word in expected.words], abs=1e-3
            )
        assert own.transcribe(tmp_path / "song.wav", **ONCE).words == ()
        asked = {"translate": True, "prompt": "the colour", **ONCE}
        assert own.transcribe(tmp_path / "song.wav", **asked).duration_s == 9.0
        tried = own.transcribe((sound(72, 1.0), RATE))
        assert {segment.temperature for segment in tried.segments} == {1.0}
        for value, given, param in (
            (b"no recording", {}, "recording"),
            (tmp_path / "nowhere.wav", {}, "recording"),
            ([long, long], {}, "recording"),
            ((long, RATE), {"language": "klingon"}, "language"),
        ):
            with pytest.raises(PerceptError) as caught:
                own.transcribe(value, **given)
            assert caught.value.param is not None and caught.value.param.startswith(param)
    writing.wait_until_idle(5)
