"""What makes the model that hears: tower and language model in newer modules, quick ears, lessons, files."""

import io
import random
from functools import cache
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import Qwen2VLForConditionalGeneration

from models.senses import tokens
from models.senses.beeps import PITCHES, make_beeps, sound
from models.senses.ears import hear, new_ears
from models.senses.films import DIRECTIONS, appearing_film, make_film, moving_film
from models.senses.lessons import film_lesson
from models.senses.media import FRAMES_PER_SECOND, mp4, wav
from models.senses.network import grown
from models.senses.questions import Question, ask_about_beeps, ask_about_film, describe_beeps
from models.senses.recordings import record
from models.senses.speech import RATE
from models.senses.spelling import SYMBOLS, Clip, beeps_clip, spelled, to_spectra, to_targets
from models.senses.thinker import to_thinker
from models.training import vocabulary
from models.training.network import new_config
from models.training.pixels import grid_of


@cache
def seeing() -> Any:
    """A model that sees, of random weights, norms included."""
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(new_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return grown(model)


@cache
def thinker() -> Any:
    torch.manual_seed(1)
    return to_thinker(seeing(), new_ears())


@torch.no_grad()
def test_the_newer_tower_computes_what_the_older_did() -> None:
    grids = torch.tensor([[1, 12, 10], [1, 8, 8]])
    pixels = torch.randn(184, 3, 1, 64).expand(-1, 3, 2, 64).reshape(184, -1)
    old, new = (model.model.visual(pixels, grid_thw=grids).pooler_output for model in (seeing(), thinker()))
    torch.testing.assert_close(new, old, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_of_a_pair_of_frames_the_first_is_seen() -> None:
    grid = torch.tensor([[1, 8, 8]])
    frames = torch.randn(64, 3, 2, 64)
    other = frames.clone()
    other[:, :, 1] = torch.randn(64, 3, 64)
    one, same = (
        thinker().model.visual(pixels.reshape(64, -1), grid_thw=grid).pooler_output
        for pixels in (frames, other)
    )
    torch.testing.assert_close(one, same)


@torch.no_grad()
def test_the_newer_language_model_says_what_the_older_did() -> None:
    words = torch.randint(10, 700, (2, 30))
    torch.testing.assert_close(thinker()(words).logits, seeing()(words).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_more_layer_changes_nothing_at_first() -> None:
    torch.manual_seed(2)
    model = Qwen2VLForConditionalGeneration(new_config()).eval()
    words = torch.randint(10, 700, (2, 30))
    before = model(words).logits
    after = grown(model)(words).logits
    torch.testing.assert_close(after[..., : vocabulary.SIZE], before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_quick_ears_equal_transformers() -> None:
    ears: Any = new_ears().eval()
    clips = [beeps_clip(random.Random(seed)) for seed in range(4)]
    spectra, counts = to_spectra(clips, 600)
    rows = hear(ears, spectra, counts)
    for index, count in enumerate(counts.tolist()):
        alone = ears(spectra[index, :, :count], feature_lens=torch.tensor([count])).last_hidden_state
        torch.testing.assert_close(rows[index, : count // 4], alone, atol=1e-4, rtol=1e-4)


def test_every_token_of_the_older_vocabulary_keeps_its_number() -> None:
    old, new = vocabulary.build_tokenizer(), tokens.build_tokenizer()
    text = "What is to the left of the red circle?\nZero! <b>"
    assert new.encode(text).ids == old.encode(text).ids
    assert [new.token_to_id(token) for token in tokens.SPECIAL[:7]] == list(range(7))
    assert new.encode(tokens.AUDIO).ids == [vocabulary.SIZE + 2]
    assert new.get_vocab_size() <= tokens.SIZE


@pytest.mark.parametrize("seed", range(12))
def test_positions_of_films_equal_transformers(seed: int) -> None:
    lesson = film_lesson(vocabulary.build_tokenizer(), random.Random(seed), 192, 0.5)
    ids = tokens.special_ids()
    words = torch.tensor([lesson.sequence.tokens])
    scenes, grids = iter(lesson.scenes), []
    for film in _runs(words[0] == ids[tokens.VIDEO]):
        rows, columns = grid_of(*_size(next(scenes)))
        moments = film // (rows * columns)
        for _ in range(moments - 1):
            next(scenes)
        grids.append([moments, rows * 2, columns * 2])
    positions, _ = thinker().get_rope_index(
        words,
        video_grid_thw=torch.tensor(grids),
        second_per_grids=torch.ones(len(grids)),
        attention_mask=torch.ones_like(words),
    )
    assert positions[:, 0].T.long().tolist() == [list(place) for place in lesson.sequence.positions]


def _runs(marked: torch.Tensor) -> list[int]:
    """Lengths of the runs of marked tokens."""
    edges = np.flatnonzero(np.diff([0, *marked.int().tolist(), 0]))
    return (edges[1::2] - edges[::2]).tolist()


def _size(scene: Any) -> tuple[int, int]:
    return scene.width, scene.height


@pytest.mark.parametrize("seed", range(20))
def test_a_mover_goes_where_it_is_said_to(seed: int) -> None:
    film = moving_film(random.Random(seed))
    first, last = film.scenes[0].things[0], film.scenes[-1].things[0]
    ways = {
        "left": first.x - last.x,
        "right": last.x - first.x,
        "up": first.y - last.y,
        "down": last.y - first.y,
    }
    assert max(ways, key=lambda way: ways[way]) == film.direction in DIRECTIONS
    middle = film.at(0.5).things[0]
    assert min(first.x, last.x) <= middle.x <= max(first.x, last.x)
    assert film.describe().endswith(f" moves {film.direction}.")


@pytest.mark.parametrize("seed", range(20))
def test_shapes_appear_in_order_and_stay(seed: int) -> None:
    film = appearing_film(random.Random(seed))
    seen: list[Any] = []
    for scene in film.scenes:
        assert set(seen) <= set(scene.things)
        seen += [thing for thing in scene.things if thing not in seen]
    assert tuple(seen) == film.order


def test_beeps_are_counted_by_pitch() -> None:
    assert describe_beeps(["high"]) == "One high beep."
    assert describe_beeps(["high", "low", "high"]) == "One low beep and two high beeps."


def test_questions_are_answered_by_what_is_heard_and_seen() -> None:
    asked: list[Question] = []
    for seed in range(300):
        rng = random.Random(seed)
        asked.append(ask_about_film(rng, make_film(rng, 0.5)))
        beeps = make_beeps(rng)
        question = ask_about_beeps(rng, beeps)
        for number, word in enumerate(("zero", "one", "two", "three", "four", "five")):
            for pitch in PITCHES:
                if f"{pitch} beeps" in question.question.lower():
                    right = number == sum(beep.pitch == pitch for beep in beeps.row)
                    assert (question.answer == f"{word.capitalize()}.") == right
        asked.append(question)
    assert {question.skill for question in asked} == {"movement", "order", "beeps"}
    assert all(question.answer.endswith(".") and "{" not in question.question for question in asked)


def test_tones_have_their_pitch_and_recordings_their_limits() -> None:
    for seed in range(10):
        beeps = make_beeps(random.Random(seed))
        tone = sound(beeps)[: int(beeps.row[0].length * RATE)]
        loudest = np.abs(np.fft.rfft(tone)).argmax() * RATE / len(tone)
        assert abs(loudest - beeps.row[0].hertz) < 2 * RATE / len(tone)
        recording = record(np.tile(sound(beeps), 60), random.Random(seed))
        assert len(recording) == 6 * RATE
        assert np.abs(recording).max() <= 1


def test_spelling_reads_the_likeliest_symbols() -> None:
    clips = [Clip(np.zeros(1600, np.float32), (SYMBOLS[3], SYMBOLS[3], SYMBOLS[5]))]
    numbers, lengths = to_targets(clips)
    assert (numbers.tolist(), lengths.tolist()) == ([3, 3, 5], [3])
    rows = torch.nn.functional.one_hot(torch.tensor([[0, 3, 3, 0, 3, 5, 5, 7]]), len(SYMBOLS)).float()
    assert spelled(rows, torch.tensor([28])) == [clips[0].symbols]


def test_files_hold_what_they_are_made_of() -> None:
    film = moving_film(random.Random(3))
    with av.open(io.BytesIO(mp4(film))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(film.scenes) * FRAMES_PER_SECOND
    recording = record(sound(make_beeps(random.Random(4))), random.Random(4))
    samples, rate = soundfile.read(io.BytesIO(wav(recording)))
    assert rate == RATE
    assert np.abs(samples - recording).max() < 1e-4
