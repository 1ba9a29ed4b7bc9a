"""Pieces that fail are written down again with more chance, and silence is nothing, as Whisper has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from protos.llm.v1 import llm_service_pb2 as pb
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, running_stack
from tests.integration.test_gateway_transcriptions import HEARING, WORDS, post, whisper

TRIES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def sure(least: float = 0.0, *, logprob: float = -2.0, silence: float = 0.0) -> Callable[[Any], Any]:
    """Measures that are good from a temperature on."""

    def measures(request: pb.GenerateRequest) -> pb.SpeechMeasures:
        good = request.sampling.temperature >= least
        return pb.SpeechMeasures(no_speech_probability=silence, mean_logprob=-0.3 if good else logprob)

    return measures


def saying(request: pb.GenerateRequest) -> Sequence[str]:
    """Words that tell with which temperature they were chosen."""
    return ("<|de|>", "<|transcribe|>", f" at {request.sampling.temperature:g}", "<|endoftext|>")


def temperatures(llm: ScriptedLlm) -> list[float]:
    return [request.sampling.temperature for request in llm.requests]


@pytest.mark.parametrize("form", ["json", "text", "verbose_json"])
async def test_what_the_model_is_unsure_of_is_tried_again(form: str) -> None:
    llm = whisper(words_for=saying, measures_for=sure(0.4))
    async with running_stack([llm]) as stack:
        answer = await post(stack, response_format=form)
        assert answer.status_code == 200, answer.text
        assert temperatures(llm) == TRIES[:3]
        assert all(request.speech_measures for request in llm.requests)
        if form == "text":
            assert answer.text == "at 0.4\n"
        else:
            assert answer.json()["text"] == "at 0.4"
        if form == "verbose_json":
            (segment,) = answer.json()["segments"]
            assert segment["temperature"] == 0.4 and answer.json()["language"] == "german"


async def test_what_repeats_itself_is_tried_again() -> None:
    def words(request: pb.GenerateRequest) -> Sequence[str]:
        count = 60 if request.sampling.temperature == 0 else 1
        return ("<|de|>", "<|transcribe|>", *[" la la"] * count)

    llm = whisper(words_for=words, measures_for=sure())
    async with running_stack([llm]) as stack:
        assert (await post(stack)).json()["text"] == "la la"
        assert temperatures(llm) == TRIES[:2]


async def test_the_last_try_counts() -> None:
    llm = whisper(words_for=saying, measures_for=sure(2.0))
    async with running_stack([llm]) as stack:
        assert (await post(stack)).json()["text"] == "at 1"
        assert temperatures(llm) == TRIES
        llm.requests.clear()
        await post(stack, temperature_increment_on_fallback="0.5")
        assert temperatures(llm) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "fields", [{"temperature": "0.3"}, {"temperature_increment_on_fallback": "0"}], ids=str
)
async def test_what_says_how_is_tried_once(fields: dict[str, Any]) -> None:
    llm = whisper(words_for=saying, measures_for=sure(2.0))
    async with running_stack([llm]) as stack:
        assert (await post(stack, **fields)).status_code == 200
        assert temperatures(llm) == [pytest.approx(float(fields.get("temperature", 0)))]


async def test_a_stream_says_what_comes_and_takes_nothing_back() -> None:
    llm = whisper(measures_for=sure(2.0, silence=0.9))
    async with running_stack([llm]) as stack:
        answer = await post(stack, stream="true")
        assert "Hallo" in answer.text
        assert temperatures(llm) == [0.0] and not llm.requests[0].speech_measures
        refused = await post(stack, stream="true", temperature_increment_on_fallback="0.2")
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "temperature_increment_on_fallback")
        assert (await post(stack, stream="true", temperature_increment_on_fallback="0")).status_code == 200


async def test_a_model_that_converses_is_asked_once() -> None:
    llm = ScriptedLlm(family="voxtral", limits=HEARING, words=(" Hi",), measures_for=sure(2.0))
    async with running_stack([llm]) as stack:
        assert (await post(stack)).json()["text"] == "Hi"
        assert len(llm.requests) == 1 and not llm.requests[0].speech_measures
        refused = await post(stack, temperature_increment_on_fallback="0.2")
        assert refused.json()["error"]["param"] == "temperature_increment_on_fallback"


@pytest.mark.parametrize(
    ("logprob", "silence", "text", "tries"),
    [(-1.5, 0.7, "", 1), (-0.9, 0.7, "at 0", 1), (-1.5, 0.5, "at 0.2", 2)],
    ids=["silence", "sure of it", "not silent"],
)
async def test_silence_is_nothing(logprob: float, silence: float, text: str, tries: int) -> None:
    measures = sure(0.2, logprob=logprob, silence=silence)
    llm = whisper(words_for=saying, measures_for=measures)
    async with running_stack([llm]) as stack:
        answer = (await post(stack, response_format="verbose_json")).json()
        assert (answer["text"], len(llm.requests)) == (text, tries)
        assert [part["text"].strip() for part in answer["segments"]] == ([text] if text else [])
        for part in answer["segments"]:
            assert part["no_speech_prob"] == pytest.approx(silence)
        assert answer["language"] == "german", "it was heard all the same"
        told = (await post(stack, **{"include[]": "logprobs"})).json()
        assert (told["text"], bool(told["logprobs"])) == (text, bool(text))
        assert (await post(stack, response_format="text", temperature="0.1")).text.strip() == (
            "" if not text else "at 0.1"
        )


async def test_only_the_piece_that_fails_is_tried_again() -> None:
    def measures(request: pb.GenerateRequest) -> pb.SpeechMeasures:
        bad = request.request_id.endswith("-2") and request.sampling.temperature < 0.6
        return pb.SpeechMeasures(mean_logprob=-2 if bad else -0.1)

    llm = whisper(words_for=saying, measures_for=measures)
    async with running_stack([llm], [ScriptedEncoder(piece_count=4)]) as stack:
        assert (await post(stack)).json()["text"] == "at 0 at 0 at 0.6 at 0"
        assert sorted(temperatures(llm)) == [0, 0, 0, 0, 0.2, 0.4, 0.6]
        # One language for all, which the first try of the first piece has heard.
        assert [request.transcription.language for request in llm.requests] == ["", *["de"] * 6]


async def test_nothing_is_tried_again_that_the_deadline_leaves_no_time_for() -> None:
    llm = whisper(words=WORDS, measures_for=sure(2.0), pause_s=0.1)
    async with running_stack([llm], request_timeout_s=2.5) as stack:
        answer = await post(stack)
        assert (answer.status_code, answer.json()["text"]) == (200, "Hallo Welt")
        assert 1 <= len(llm.requests) < len(TRIES)


@pytest.mark.parametrize("value", ["0.01", "-0.2", "1.5", "nan", "much"])
async def test_increments_that_are_none(value: str) -> None:
    async with running_stack([whisper()]) as stack:
        refused = await post(stack, temperature_increment_on_fallback=value)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "temperature_increment_on_fallback"), error
        assert stack.encoders[0].split == []
