"""`python -m models.training.judge`: how many answers a checkpoint gets right, with plain transformers.

Knows nothing about Percept's services: it loads the folder as any user of transformers would, and generates
greedily in fp32. Prints accuracy per skill and overall, and at wish the wrong answers.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.training import vocabulary
from models.training.cases import Case, cases
from models.training.conversations import Exchange
from models.training.drawing import draw
from models.training.tally import Tally
from models.training.train import SEEING

_LONGEST_ANSWER = 32


class Speaker:
    """A checkpoint folder that answers batches of conversations."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def answer(self, conversations: list[list[dict[str, Any]]]) -> list[str]:
        """The next answer of every conversation; pictures are PIL images in parts of type "image"."""
        texts = [
            self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
            for c in conversations
        ]
        pictures = [part["image"] for c in conversations for part in _parts(c) if part["type"] == "image"]
        seen: dict[str, Any] = {}
        if pictures:
            seen = dict(self._images(pictures, return_tensors="pt"))
            texts = self._widen(texts, seen["image_grid_thw"])
        words = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        image = self.tokenizer.convert_tokens_to_ids(vocabulary.IMAGE)
        kinds = (words["input_ids"] == image).int()
        made = self._model.generate(
            **words, **seen, mm_token_type_ids=kinds, max_new_tokens=_LONGEST_ANSWER, do_sample=False
        )
        answers = made[:, words["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _widen(self, texts: list[str], grids: torch.Tensor) -> list[str]:
        """Every picture's one placeholder becomes as many as it has cells."""
        sizes = iter((grids.prod(-1) // self._images.merge_size**2).tolist())
        widened = []
        for text in texts:
            first, *rest = text.split(vocabulary.IMAGE)
            widened.append(first + "".join(vocabulary.IMAGE * next(sizes) + piece for piece in rest))
        return widened


def _parts(conversation: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (
        part
        for message in conversation
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def user_message(exchange: Exchange) -> dict[str, Any]:
    """The exchange's question as a chat message; plain text where no picture comes along."""
    if not exchange.scenes:
        return {"role": "user", "content": exchange.turn.question}
    text = [{"type": "text", "text": exchange.turn.question}]
    pictures = [{"type": "image", "image": draw(scene)} for scene in exchange.scenes]
    return {"role": "user", "content": text + pictures if exchange.text_first else pictures + text}


def judge(speaker: Speaker, asked: list[Case], tally: Tally) -> None:
    """Holds the conversations side by side and counts every answer."""
    talks: list[list[dict[str, Any]]] = [[] for _ in asked]
    for turn in range(max(len(case.exchanges) for case in asked)):
        going = [index for index, case in enumerate(asked) if turn < len(case.exchanges)]
        for index in going:
            talks[index].append(user_message(asked[index].exchanges[turn]))
        for index, answer in zip(going, speaker.answer([talks[index] for index in going]), strict=True):
            talks[index].append({"role": "assistant", "content": answer})
            wanted = asked[index].exchanges[turn].turn
            tally.count(asked[index].skill, wanted.question, wanted.answer, answer)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.judge", description=__doc__)
    parser.add_argument("--model", type=Path, default=SEEING)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=900, help="cases, the skills in turn")
    parser.add_argument("--batch", type=int, default=90)
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers, too")
    chosen = parser.parse_args()
    speaker, tally = Speaker(chosen.model), Tally()
    asked = list(cases(chosen.seed, chosen.count))
    for start in tqdm(range(0, len(asked), chosen.batch), desc="judging", unit="batch"):
        judge(speaker, asked[start : start + chosen.batch], tally)
    print(tally.table())
    if chosen.wrong:
        print("\n".join(tally.wrong))


if __name__ == "__main__":
    main()
