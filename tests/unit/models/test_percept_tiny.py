"""The bundled checkpoint: small, complete for plain transformers, and right about the examples."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen2_5OmniThinkerForConditionalGeneration

from models import BUNDLED
from models.senses.cases import make_case
from models.senses.judge import Listener, frames_of, judge
from models.training.cases import Case, cases
from models.training.conversations import Exchange
from models.training.drawing import draw
from models.training.tally import Tally
from shared.checkpoint import find_checkpoint
from shared.families import load_family
from shared.families.base import Modality

EXAMPLES = Path(__file__).parents[3] / "examples"
MEBIBYTE = 1 << 20


@cache
def listener() -> Listener:
    return Listener(BUNDLED)


def asked() -> list[Any]:
    """Every question that the examples' answers file knows."""
    return [
        pytest.param(known, id=known["question"])
        for known in json.loads((EXAMPLES / "answers.json").read_text())
    ]


def message(known: dict[str, Any]) -> dict[str, Any]:
    parts = [
        *({"type": "image", "image": Image.open(EXAMPLES / name)} for name in known.get("pictures", ())),
        *({"type": "audio", "audio": samples(EXAMPLES / name)} for name in known.get("sounds", ())),
        *(
            {"type": "video", "video": frames_of((EXAMPLES / name).read_bytes())}
            for name in known.get("films", ())
        ),
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": known["question"]}]}


def samples(path: Path) -> Any:
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_what_a_wrong_prompt_is_told_to_say_is_what_the_template_says(modality: Modality) -> None:
    layout = load_family(find_checkpoint(str(BUNDLED))).prompt_layout()
    text = layout.placeholder_text(modality)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    assert tokenizer(text).input_ids.count(layout.placeholder_ids()[modality]) == 1
    message = {"role": "user", "content": [{"type": modality}]}
    assert text in tokenizer.apply_chat_template([message], tokenize=False)


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.glob("*.safetensors")) <= 24 * MEBIBYTE


def test_no_key_is_missing_or_unexpected() -> None:
    _, found = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(BUNDLED, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]


def test_it_is_a_thinker_with_room_for_a_conversation() -> None:
    config = AutoConfig.from_pretrained(BUNDLED)
    assert config.model_type == "qwen2_5_omni_thinker"
    assert config.text_config.max_position_embeddings >= 2048


@pytest.mark.parametrize("known", asked())
def test_it_answers_the_examples(known: dict[str, Any]) -> None:
    assert listener().answer([message(known)]) == known["answer"]


def test_the_examples_show_every_sense() -> None:
    kinds = {kind for known in asked() for kind in ("pictures", "sounds", "films") if kind in known.values[0]}
    assert kinds == {"pictures", "sounds", "films"}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello", "Hello! Send me a picture with shapes or numbers."),
        ("What colour is the circle?", "Please send me a picture first."),
    ],
)
def test_it_talks_without_a_picture(question: str, answer: str) -> None:
    assert listener().answer([{"role": "user", "content": question}]) == answer


@pytest.mark.timeout(600)
def test_unseen_pictures_are_answered_rightly() -> None:
    tally = Tally()
    for case in cases(seed=77, count=90):
        hold(case, tally)
    assert tally.accuracy >= 0.9, tally.wrong


@pytest.mark.timeout(600)
@pytest.mark.parametrize("skill", ["beeps", "movement", "order"])
def test_unseen_recordings_and_films_are_answered_rightly(skill: str) -> None:
    """Voices need a program that speaks; `python -m benchmarks.eval_tiny` asks them too."""
    tally = Tally()
    judge(listener(), (make_case(skill, random.Random(f"77/{skill}/{index}")) for index in range(30)), tally)
    assert tally.accuracy >= 0.8, tally.wrong


def hold(case: Case, tally: Tally) -> None:
    """Asks the case's questions one after another; the model's own answers become the history."""
    messages: list[dict[str, Any]] = []
    for exchange in case.exchanges:
        messages.append({"role": "user", "content": content(exchange)})
        answer = listener().answer(messages)
        messages.append({"role": "assistant", "content": answer})
        tally.count(case.skill, exchange.turn.question, exchange.turn.answer, answer)


def content(exchange: Exchange) -> Any:
    text = [{"type": "text", "text": exchange.turn.question}]
    pictures = [{"type": "image", "image": draw(scene)} for scene in exchange.scenes]
    return text + pictures if exchange.text_first else pictures + text
