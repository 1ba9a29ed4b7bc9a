"""Qwen2.5-Omni watches videos with their sound, through the running services, as transformers does.

`use_audio_in_video`: MP4 files with a track of sound without loss, so that both hear the same
samples; rows of frames and of sound by turns, in the order of `Qwen2_5OmniProcessor`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from llm_service.text_tokenizer import TextTokenizer
from shared.checkpoint import read_checkpoint
from shared.families import load_family
from tests.asking import audio_part, moving_picture, picture, sound, template_messages, user
from tests.families.qwen2_5_omni import CASE
from tests.items import features_of
from tests.laying_out import Layouter
from tests.oracle import Media, Oracle, OracleAnswer, Recording, Video
from tests.stack import UpStack

pytestmark = pytest.mark.end_to_end

TOKENS = 12
HEARD = {"use_audio_in_video": True}
FLAGS = ("--served-model-name", "tiny", "--workers", "1", "--kv-cache-gib", "0.05")


def film(seed: int, seconds: float = 3.0) -> Video:
    """Two frames a second, and sound as files of 16 bits hold it."""
    frames = moving_picture(seed, CASE.video_size, round(2 * seconds))
    samples = np.round(sound(seed, seconds) * 32_767).clip(-32_768, 32_767).astype(np.int16)
    return Video(frames, fps=2.0, sound=Recording(samples.astype(np.float32) / np.float32(32_768)))


def mp4_part(shown: Video) -> dict[str, Any]:
    """The video as MP4, H.264 and FLAC, both without loss."""
    import av

    assert shown.sound is not None
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264rgb", rate=Fraction(shown.fps).limit_denominator(), options={"qp": "0"}
        )
        stream.height, stream.width = shown.frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        heard: Any = container.add_stream(
            "flac", rate=shown.sound.rate, layout="mono", options={"strict": "-2"}
        )
        heard.format = "s16"
        for frame in shown.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        whole = (shown.sound.samples * 32_768).astype(np.int16)
        for first in range(0, len(whole), 4096):
            piece = av.AudioFrame.from_ndarray(whole[None, first : first + 4096], format="s16", layout="mono")
            piece.sample_rate, piece.pts = shown.sound.rate, first
            piece.time_base = Fraction(1, shown.sound.rate)
            container.mux(heard.encode(piece))
        container.mux(heard.encode(None))
    url = f"data:video/mp4;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def part_of(shown: Any) -> Any:
    if isinstance(shown, Video):
        return mp4_part(shown)
    return audio_part(shown.samples, shown.rate) if isinstance(shown, Recording) else shown


QUESTIONS: dict[str, list[Any]] = {
    "a film": [film(1), "what happens?"],
    "a long film between words": ["look:", film(2, 4.0), "and listen"],
    "two films": [film(3), "then", film(4, 1.0), "compare"],
    "a film, a picture and a recording": [picture(5, (84, 56)), film(6), Recording(sound(7, 1.0)), "which?"],
}


def media_of(parts: list[Any]) -> list[Media]:
    return [part for part in parts if not isinstance(part, str)]


def slots(media: list[Media]) -> dict[str, Any]:
    """Which recording is which video's, where the processor wants to be told."""
    from transformers import processing_utils

    if not hasattr(processing_utils, "OmniModalProcessorMixin"):
        return {}
    films = [shown for shown in media if isinstance(shown, Video)]
    heard = [shown for shown in media if isinstance(shown, Video | Recording)]
    return {
        "audio_from_video_indices": [
            films.index(shown) if isinstance(shown, Video) else None for shown in heard
        ]
    }


class Watching:
    """The services, and the oracle's view of the same checkpoint."""

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        self.folder = folder
        self.tokenizer = TextTokenizer.load(folder)
        self.stack = UpStack(folder, *FLAGS, "--trust-request-mm-kwargs")
        self._oracle = oracle

    async def answer(self, parts: list[Any], **kwargs: Any) -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{self.stack.url}/v1", api_key="none", max_retries=0, timeout=200
        ) as client:
            return await client.chat.completions.create(
                model="tiny",
                messages=[user(*(part_of(part) for part in parts))],  # type: ignore[list-item]
                temperature=0,
                max_completion_tokens=TOKENS,
                extra_body={"min_tokens": TOKENS, "mm_processor_kwargs": kwargs},
            )

    def expected(self, parts: list[Any]) -> OracleAnswer:
        messages = template_messages([user(*(part_of(part) for part in parts))])
        return self._oracle.ask(
            CASE,
            self.folder,
            messages,
            media_of(parts),
            new_tokens=TOKENS,
            processor_arguments=HEARD | slots(media_of(parts)),
            generate_arguments=HEARD,
        )


@pytest.fixture(scope="module")
def watching(tiny_checkpoint: Callable[[str], Path], oracle: Oracle) -> Iterator[Watching]:
    running = Watching(tiny_checkpoint("qwen2_5_omni"), oracle)
    yield running
    running.stack.stop()


@pytest.mark.parametrize("name", QUESTIONS)
async def test_films_are_heard_as_transformers_hears_them(watching: Watching, name: str) -> None:
    parts = QUESTIONS[name]
    expected = watching.expected(parts)
    preprocessor = load_family(read_checkpoint(watching.folder)).preprocessor()
    infos = [
        features_of(preprocessor, shown, HEARD if isinstance(shown, Video) else {}).info
        for shown in media_of(parts)
    ]
    # The processor's own order: marks, and rows of frames and of sound by turns.
    assert Layouter(watching.folder).lay_out(expected.text, infos).token_ids == expected.prompt_ids
    answer = await watching.answer(parts, **HEARD)
    assert answer.usage.prompt_tokens == len(expected.prompt_ids)
    assert answer.choices[0].message.content == watching.tokenizer.decode(expected.new_ids)
    details = answer.usage.prompt_tokens_details.to_dict()
    rows = sum(info.row_count for info, shown in zip(infos, media_of(parts), strict=True)
               if isinstance(shown, Recording))  # fmt: skip
    assert details["audio_tokens"] == rows + sum(info.sound_row_count for info in infos)


async def test_the_sound_counts(watching: Watching) -> None:
    """Otherwise equality would show little: other sound, and none, give other answers."""
    shown = film(1)
    other = Video(shown.frames, shown.fps, sound=film(2).sound)
    answers = [
        await watching.answer([shown, "what happens?"], **HEARD),
        await watching.answer([other, "what happens?"], **HEARD),
        await watching.answer([shown, "what happens?"]),
    ]
    assert len({answer.choices[0].message.content for answer in answers}) == 3
    assert answers[2].usage.prompt_tokens_details.to_dict()["audio_tokens"] == 0
