"""What makes the bundled model of the one that hears: new layers, segments side by side, drills, the file."""

import json
import random
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from models import BUNDLED
from models.polish.batches import Shape, to_tensors
from models.polish.drills import drill_pair, drill_single
from models.polish.exam import accuracy, picture_exam, senses_exam
from models.polish.export import export
from models.polish.items import Items
from models.polish.lessons import COMPARING, LOCATING, POLISHING, Segment, drill_sequence, fill_row, shown
from models.polish.loop import Worker
from models.polish.network import LanguageModel, deepen, open_thinker
from models.polish.plan import Plan
from models.polish.stock import MOST_PICTURES, Sizes, Stock, Towers, make_stock
from models.senses import tokens
from models.senses.beeps import sound
from models.senses.ears import WIDTH
from models.senses.lessons import clip_rows
from models.senses.recordings import record
from models.senses.spelling import Clip
from models.senses.thinker import thinker_config
from models.training.cases import SKILLS
from models.training.conversations import Exchange
from models.training.examples import Sequence
from models.training.pixels import MOST_CELLS

PLAN = Plan(
    behind=(1,),
    locating=0,
    comparing=1,
    steps=3,
    warmup=2,
    workers=1,
    compiled=False,
    shape=Shape(rows=2, length=256, answered=256),
    sizes=Sizes(singles=8, pairs=2, films=2, conversations=2, voices=2, beeps=2),
)


@cache
def model() -> LanguageModel:
    torch.manual_seed(0)
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config()).eval()
    thinker.set_attn_implementation("eager")
    return LanguageModel(thinker)


def logits_of(segments: list[list[Segment]], language: LanguageModel | None = None) -> torch.Tensor:
    """Of every answered token, in order."""
    length = max(sum(len(one.sequence.tokens) for one in row) for row in segments)
    batch = to_tensors(segments, Shape(len(segments), length, 2048))
    with torch.no_grad():
        logits: torch.Tensor = (language or model())(batch.tensors())[0]
    return logits[batch.weights > 0]


def pictured(sequence: Sequence, rows: Any) -> Segment:
    return Segment(sequence, shown(sequence, rows))


def random_rows(pictures: int) -> Any:
    return np.random.default_rng(0).standard_normal((pictures, MOST_CELLS, WIDTH)).astype(np.float16)


def test_a_talk_of_a_drill_is_read_as_if_it_were_alone() -> None:
    tokenizer, items, followed = tokens.build_tokenizer(), Items("talks"), 0
    for number in range(20):
        scenes = items.pair(number) if number % 2 else (items.single(number),)
        rng, rows = random.Random(number), random_rows(len(scenes))
        drill = drill_pair(rng, *scenes) if len(scenes) == 2 else drill_single(rng, *scenes)
        talks = tuple(islice(drill, 5))
        followed += sum(len(turns) > 1 for turns in talks)
        alone = []
        for first, *later in talks:
            sequence = Sequence(tokenizer)
            for exchange in (Exchange(first, scenes), *(Exchange(turn) for turn in later)):
                sequence.exchange(exchange)
            alone.append([pictured(sequence, rows)])
        together = [[pictured(drill_sequence(tokenizer, scenes, talks, 1000), rows)]]
        torch.testing.assert_close(logits_of(together), logits_of(alone), atol=1e-4, rtol=1e-4)
    assert followed > 0


def test_segments_of_a_row_do_not_see_one_another(stock: Stock) -> None:
    rng, tokenizer = random.Random(1), tokens.build_tokenizer()
    row = fill_row(tokenizer, stock, rng, 640, POLISHING)
    assert len(row) > 2
    assert sum(len(one.sequence.tokens) for one in row) <= 640
    torch.testing.assert_close(logits_of([row]), logits_of([[one] for one in row]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_quick_pass_equals_transformers() -> None:
    tokenizer, scene = tokens.build_tokenizer(), Items("quick").single(0)
    sequence = Sequence(tokenizer)
    sequence.exchange(Exchange(next(drill_single(random.Random(0), scene))[0], (scene,)))
    segment = pictured(sequence, random_rows(1))
    language = model().language
    words = language.embed_tokens(torch.tensor([sequence.tokens]))
    for place, row in segment.given.items():
        words[0, place] = torch.from_numpy(row.astype(np.float32))
    positions = torch.tensor(sequence.positions).T[:, None]
    hidden = language(inputs_embeds=words, position_ids=positions).last_hidden_state[0]
    answered = [place - 1 for place, one in enumerate(sequence.answered) if one]
    slow = hidden[answered] @ language.embed_tokens.weight.T
    torch.testing.assert_close(logits_of([[segment]]), slow, atol=2e-4, rtol=2e-4)


def test_new_layers_change_nothing_at_first() -> None:
    torch.manual_seed(0)
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config()).eval()
    thinker.set_attn_implementation("eager")
    deepen(thinker, (0, 3))
    deeper = LanguageModel(thinker)
    assert (
        len(deeper.language.layers)
        == len(model().language.layers) + 2
        == thinker.config.text_config.num_hidden_layers
    )
    sequence = Sequence(tokens.build_tokenizer())
    scene = Items("deeper").single(0)
    sequence.exchange(Exchange(next(drill_single(random.Random(0), scene))[0], (scene,)))
    row = [[pictured(sequence, random_rows(1))]]
    torch.testing.assert_close(logits_of(row, deeper), logits_of(row), atol=0, rtol=0)


def test_hints_say_where_what_is_mentioned_lies(stock: Stock) -> None:
    tokenizer, rng, known = tokens.build_tokenizer(), random.Random(3), Counter[str]()
    for makers in (LOCATING, COMPARING, POLISHING):
        for segment in fill_row(tokenizer, stock, rng, 1024, makers):
            sequence, hints = segment.sequence, segment.hints
            if makers is POLISHING and not hints.where and not hints.apart:
                continue  # A conversation, or nothing that is mentioned.
            where, apart = iter(hints.where), iter(hints.apart)
            for start, turn in sequence.asked:
                after_picture = any(cell >= 0 for cell in sequence.cells[:start])
                for phrase, thing in turn.mentions if after_picture else ():
                    place, x, y = next(where)
                    said = tokenizer.decode(sequence.tokens[start : place + 1]).lower()
                    assert said.endswith(phrase)
                    assert (x, y) == (thing.x, thing.y)
                    known["where"] += 1
                if turn.compares:
                    (_, one), (_, other) = turn.mentions
                    place, across, down = next(apart)
                    assert place > start
                    assert not sequence.answered[place] and sequence.answered[place + 1]
                    assert (across, down) == (one.x - other.x, one.y - other.y)
                    known["apart"] += 1
            assert not [*where, *apart]
    assert known["where"] > known["apart"] > 0


def test_drills_dwell_on_what_is_hard() -> None:
    asked: Counter[str] = Counter()
    items = Items("drills")
    for number in range(100):
        scene, pair, rng = items.single(number), items.pair(number), random.Random(number)
        for turns in islice(drill_single(rng, scene), 5):
            asked[turns[0].skill] += 1
            assert 1 <= len(turns) <= 3
            if turns[0].skill == "position":
                assert 2 <= len(scene.things) <= 3
        assert all(turns[0].skill == "compare" for turns in islice(drill_pair(rng, *pair), 5))
    hard, easy = ("position", "describe", "count"), ("colour", "shape", "presence")
    assert min(asked[skill] for skill in hard) > max(asked[skill] for skill in easy)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    folder = tmp_path_factory.mktemp("stock")
    speak_noise(folder / "utterances", PLAN.sizes.voices)
    return make_stock(folder, BUNDLED, "items", PLAN.sizes, workers=1)


def speak_noise(folder: Path, count: int) -> None:
    """Utterances as a pool keeps them, without a program that speaks."""
    folder.mkdir(parents=True)
    samples = np.random.default_rng(0).integers(-9000, 9000, 8000 * count)
    np.save(folder / "samples.npy", samples.astype(np.int16))
    edges = [8000 * number for number in range(count + 1)]
    (folder / "words.json").write_text(json.dumps({"words": [["red", "one"]] * count, "edges": edges}))


def test_the_stock_keeps_what_the_towers_see(stock: Stock) -> None:
    towers = Towers(BUNDLED)
    for number in range(PLAN.sizes.films):
        film = stock.items.film(number)
        alone = np.zeros((1, MOST_PICTURES, MOST_CELLS, WIDTH), np.float16)
        towers.look([film.scenes], alone)
        assert np.abs(alone[0]).max() > 1
        np.testing.assert_allclose(stock.pictures("films", number), alone[0], atol=0.5)


def test_the_stock_keeps_what_the_towers_hear(stock: Stock) -> None:
    towers = Towers(BUNDLED)
    heard = {"voices": stock.utterances.samples(1), "beeps": sound(stock.items.beeps(1))}
    for kind, samples in heard.items():
        clip = Clip(record(samples, stock.items.noise(kind, 1)), ())
        assert stock.samples(kind, 1) == len(clip.recording)
        alone = np.zeros_like(stock.recording(kind, 1))[None]
        towers.listen([clip], alone)
        rows = clip_rows(clip)
        np.testing.assert_allclose(stock.recording(kind, 1)[:rows], alone[0, :rows], atol=0.5)
    with pytest.raises(ValueError, match="remove it"):
        make_stock(stock.folder, BUNDLED, "items", Sizes())


def test_the_exam_knows_right_from_wrong(stock: Stock) -> None:
    """The bundled model passes, one of random weights does not."""
    exam = picture_exam(tokens.build_tokenizer(), Towers(BUNDLED), seed=77, count=36)
    thinker = open_thinker(BUNDLED)
    thinker.set_attn_implementation("eager")
    known = accuracy(LanguageModel(thinker), exam)
    assert set(known) == set(SKILLS) and mean(known.values()) > 0.85
    assert mean(accuracy(model(), exam).values()) < 0.05
    senses = accuracy(LanguageModel(thinker), senses_exam(tokens.build_tokenizer(), stock, 2))
    assert set(senses) == {"voice", "beeps", "film"} and senses["film"] > 0.4


@pytest.mark.timeout(600)
def test_a_resumed_run_goes_on_as_if_never_stopped_and_is_exported(tmp_path: Path) -> None:
    folder, begun = tmp_path / "run", tmp_path / "begun"
    open_thinker(BUNDLED).save_pretrained(begun)
    speak_noise(folder / "stock" / "utterances", PLAN.sizes.voices)
    make_stock(folder / "stock", BUNDLED, "stock", PLAN.sizes, workers=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = Worker(0, PLAN, begun, folder)
        whole.step()
        whole.save()
        losses = [*whole.step(), *whole.step()]
        resumed = Worker(0, PLAN, begun, folder)
        assert resumed.done == 1
        assert [*resumed.step(), *resumed.step()] == pytest.approx(losses)
    finally:
        torch.set_num_threads(threads)
    export(folder / "checkpoint.pt", PLAN, begun, tmp_path / "polished")
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "polished", begun)]
    assert sizes[0] < 0.6 * sizes[1]
    config = json.loads((tmp_path / "polished" / "config.json").read_text())
    assert config["dtype"] == "float32"
    with safe_open(tmp_path / "polished" / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118
    polished, found = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "polished", output_loading_info=True
    )
    assert polished.dtype == torch.float32
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
