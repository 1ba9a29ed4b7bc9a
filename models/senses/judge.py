"""`python -m models.senses.judge`: how many answers the checkpoint gets right, with plain transformers.

Knows nothing about Percept's services: it loads the folder as any user of transformers would, and generates
greedily in fp32. Films are given as the frames that are looked at.
"""

import argparse
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models import BUNDLED
from models.senses import tokens
from models.senses.cases import SenseCase, sense_cases
from models.senses.speech import RATE
from models.training.tally import Tally

LONGEST_ANSWER = 32
_FRAMES_PER_SECOND = 2


class Listener:
    """A checkpoint folder that answers conversations with pictures, recordings and films."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._sounds: Any = WhisperFeatureExtractor.from_pretrained(folder)
        self.model: Any = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def answer(self, messages: list[dict[str, Any]]) -> str:
        """The next answer. Parts are texts, PIL images (`image`), samples (`audio`) and frames (`video`).

        Samples are mono at `RATE`; frames are PIL images, two for every second.
        """
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs: dict[str, Any] = {}
        widths: dict[str, list[int]] = {tokens.IMAGE: [], tokens.VIDEO: [], tokens.AUDIO: []}
        self._see([part["image"] for part in _parts(messages, "image")], inputs, widths)
        self._watch([part["video"] for part in _parts(messages, "video")], inputs, widths)
        self._hear([part["audio"] for part in _parts(messages, "audio")], inputs, widths)
        words = self.tokenizer(_widened(text, widths), return_tensors="pt")
        made = self.model.generate(**words, **inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        return str(self.tokenizer.decode(made[0, words["input_ids"].shape[1] :], skip_special_tokens=True))

    def _see(self, pictures: list[Any], inputs: dict[str, Any], widths: dict[str, list[int]]) -> None:
        if pictures:
            inputs |= dict(self._images(pictures, return_tensors="pt"))
            widths[tokens.IMAGE] = self._cells(inputs["image_grid_thw"])

    def _watch(self, films: list[Any], inputs: dict[str, Any], widths: dict[str, list[int]]) -> None:
        if not films:
            return
        pixels, grids = [], []
        for frames in films:
            seen = self._images(frames, return_tensors="pt")
            _, rows, columns = seen["image_grid_thw"][0].tolist()
            patches = seen["pixel_values"].view(-1, 2, rows * columns, 3, 2, self._images.patch_size**2)
            # A picture stands for both frames of a pair; of each of two pictures one half is taken.
            pairs = torch.stack([patches[:, 0, :, :, 0], patches[:, 1, :, :, 1]], dim=3)
            pixels.append(pairs.reshape(len(frames) // 2 * rows * columns, -1))
            grids.append([len(frames) // 2, rows, columns])
        inputs["pixel_values_videos"] = torch.cat(pixels)
        inputs["video_grid_thw"] = torch.tensor(grids)
        inputs["video_second_per_grid"] = torch.ones(len(films))
        widths[tokens.VIDEO] = self._cells(inputs["video_grid_thw"])

    def _hear(self, clips: list[Any], inputs: dict[str, Any], widths: dict[str, list[int]]) -> None:
        if not clips:
            return
        heard = self._sounds(
            clips, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, padding="max_length"
        )
        inputs["input_features"] = heard["input_features"]
        inputs["feature_attention_mask"] = heard["attention_mask"]
        frames = heard["attention_mask"].sum(-1)
        widths[tokens.AUDIO] = (((frames - 1) // 2 + 1) // 2).tolist()

    def _cells(self, grids: torch.Tensor) -> list[int]:
        return [int(count) for count in grids.prod(-1) // self._images.merge_size**2]


def _parts(messages: list[dict[str, Any]], kind: str) -> Iterable[dict[str, Any]]:
    return (
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == kind
    )


def _widened(text: str, widths: dict[str, list[int]]) -> str:
    """Every placeholder becomes as many as its item has rows."""
    for token, counts in widths.items():
        first, *rest = text.split(token)
        text = first + "".join(token * count + piece for count, piece in zip(counts, rest, strict=True))
    return text


def message_of(case: SenseCase) -> dict[str, Any]:
    """The case's question as a message, its file read."""
    part: dict[str, Any] = (
        {"type": "audio", "audio": soundfile.read(io.BytesIO(case.file), dtype="float32")[0]}
        if case.kind == "audio"
        else {"type": "video", "video": frames_of(case.file)}
    )
    return {"role": "user", "content": [part, {"type": "text", "text": case.question.question}]}


def frames_of(film: bytes) -> list[Image.Image]:
    """Two frames a second, from the first to the last."""
    with av.open(io.BytesIO(film), "r") as container:
        rate = container.streams.video[0].average_rate
        frames: list[Image.Image] = [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]
    assert rate is not None
    count = int(len(frames) / rate * _FRAMES_PER_SECOND) // 2 * 2
    return [frames[int(place)] for place in np.linspace(0, len(frames) - 1, count).round()]


def judge(listener: Listener, asked: Iterable[SenseCase], tally: Tally) -> None:
    """Asks every case and counts the answers."""
    for case in asked:
        wanted = case.question
        tally.count(wanted.skill, wanted.question, wanted.answer, listener.answer([message_of(case)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.senses.judge", description=__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=400, help="cases, the skills in turn")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers, too")
    chosen = parser.parse_args()
    tally = Tally()
    judge(Listener(chosen.model), tqdm(sense_cases(chosen.seed, chosen.count), total=chosen.count), tally)
    print(tally.table())
    if chosen.wrong:
        print("\n".join(tally.wrong))


if __name__ == "__main__":
    main()
