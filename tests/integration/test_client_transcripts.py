"""Recordings written down by the Python client, whole and as they come."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from percept import Client
from percept.client import TranscriptDelta
from protos.llm.v1 import llm_service_pb2 as pb
from shared.errors import InternalError, InvalidRequestError
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, until
from tests.integration.test_client import services
from tests.integration.test_gateway_transcriptions import HEARING, SONG, TIMED, whisper


async def test_text_comes_piece_by_piece_and_adds_up() -> None:
    llm = whisper(words=TIMED, pause_s=0.01)
    async with services([llm], [ScriptedEncoder(piece_count=3)]) as client:
        stream = await client.transcribe(SONG, stream=True)
        deltas = [delta async for delta in stream]
        assert all(isinstance(delta, TranscriptDelta) for delta in deltas) and len(deltas) > 3
        assert "".join(delta.text for delta in deltas) == " ".join(["Hallo Welt"] * 3)
        assert sorted({(delta.start_s, delta.end_s) for delta in deltas}) == [(0, 1), (1, 2), (2, 3)]
        whole = stream.transcript
        assert whole is not None and whole.text == "".join(delta.text for delta in deltas)
        assert (whole.language, whole.duration_s, len(whole.segments)) == ("german", 3.0, 6)
        assert [delta async for delta in stream] == []
        assert (await client.transcribe(SONG)).text == whole.text


async def test_a_stream_is_asked_once_and_the_whole_again() -> None:
    def measures(request: pb.GenerateRequest) -> pb.SpeechMeasures:
        return pb.SpeechMeasures(mean_logprob=-2 if request.sampling.temperature < 0.4 else -0.1)

    llm = whisper(words=TIMED, measures_for=measures)
    async with services([llm], [ScriptedEncoder()]) as client:
        async for _ in await client.transcribe(SONG, stream=True):
            pass
        assert [request.sampling.temperature for request in llm.requests] == [0]
        llm.requests.clear()
        told = await client.transcribe(SONG)
        assert [request.sampling.temperature for request in llm.requests] == [0, 0.2, 0.4]
        assert {segment.temperature for segment in told.segments} == {0.4}
        llm.requests.clear()
        await client.transcribe(SONG, temperature_increment_on_fallback=0)
        assert len(llm.requests) == 1
        with pytest.raises(InvalidRequestError) as caught:
            await client.transcribe(SONG, temperature_increment_on_fallback=float("nan"))
        assert caught.value.param == "temperature_increment_on_fallback"
        with pytest.raises(TypeError, match="speed"):
            await client.transcribe(SONG, speed=2)  # type: ignore[call-overload]


async def test_models_that_converse_come_piece_by_piece_too() -> None:
    llm = ScriptedLlm(family="voxtral", limits=HEARING, words=(" Hello", " there ", ""))
    async with services([llm], [ScriptedEncoder(piece_count=2)]) as client:
        stream = await client.transcribe(SONG, stream=True, language="fr")
        assert "".join([delta.text async for delta in stream]) == "Hello there Hello there"
        for options, param in (({"language": "klingon"}, "language"), ({"words": True}, "words")):
            with pytest.raises(InvalidRequestError) as caught:
                await client.transcribe(SONG, stream=True, **options)
            assert caught.value.param == param


@pytest.mark.parametrize("way", ["close", "drop"])
async def test_a_stream_left_early_is_cancelled(way: str) -> None:
    llm = whisper(words=[*TIMED[:2], *[" la"] * 2000], pause_s=0.01)
    async with services([llm], [ScriptedEncoder(piece_count=6)], max_concurrency=4) as client:
        stream: Any = await client.transcribe(SONG, stream=True)
        await anext(stream)
        await until(lambda: llm.running == 4)
        if way == "close":
            await stream.aclose()
            assert [delta async for delta in stream] == []
        else:
            del stream
        await until(lambda: llm.running == 0, 5)
        assert len(llm.requests) == 4


async def test_an_error_ends_a_stream() -> None:
    llm = whisper(words=TIMED, fail_with=InternalError("broken"), fail_after=4)
    async with services([llm], [ScriptedEncoder()]) as client:
        stream = await client.transcribe(SONG, stream=True)
        with pytest.raises(InternalError):
            async for _ in stream:
                pass
        assert stream.transcript is None


async def test_the_client_without_a_loop() -> None:
    llm = whisper(words=TIMED, pause_s=0.01)
    encoder = ScriptedEncoder(piece_count=2)
    async with services([llm], [encoder]):

        def texts() -> tuple[list[str], str]:
            with Client(encoder=encoder.address, llm=llm.address) as client:
                whole = client.transcribe(SONG).text
                with contextlib.closing(client.transcribe(SONG, stream=True)) as early:  # type: ignore[type-var]
                    next(early)
                return [delta.text for delta in client.transcribe(SONG, stream=True)], whole

        parts, whole = await asyncio.to_thread(texts)
        assert "".join(parts) == whole == "Hallo Welt Hallo Welt" and len(parts) > 2
        await until(lambda: llm.running == 0, 5)
