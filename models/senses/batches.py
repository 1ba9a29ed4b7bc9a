"""Batches: lessons, their pictures and their recordings as arrays of fixed shape.

Batch number n is a pure function of the seed and n. Knows nothing about weights.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from models.senses.ears import FRAMES_PER_ROW
from models.senses.lessons import Lesson, film_lesson, picture_lesson, sound_lesson
from models.senses.pool import Pool
from models.senses.spelling import to_spectra, to_targets
from models.training.examples import Batch, Shape, to_tensors
from models.training.pixels import MOST_CELLS


@dataclass(frozen=True)
class Portions:
    """How many sequences of a batch are of which kind, and what room there is.

    Attributes:
        moving: the share of films in which something moves; in the others things appear.
        hard: the share of conversations about pictures that dwell on what is hard.
        length: tokens of a sequence.
        pictures, clips: how many fit into a batch.
        frames: of a spectrogram.
    """

    of_pictures: int = 5
    of_films: int = 4
    of_voices: int = 5
    of_beeps: int = 2
    moving: float = 0.5
    hard: float = 0.5
    length: int = 192
    pictures: int = 26
    clips: int = 14
    frames: int = 480

    @property
    def sequences(self) -> int:
        return self.of_pictures + self.of_films + self.of_voices + self.of_beeps


_WEIGHTS = {"pictures": 1.0}
_OTHER_WEIGHT = 3.0
"""Answers about pictures are many to a sequence; the others count more, each."""


@dataclass
class SensesBatch:
    """One step's tensors.

    Attributes:
        seen: words and pictures; its `rows` count on behind the pictures' cells through the clips' rows.
        weights: (sequences, tokens), how much an answer's token counts.
        spectra: (clips, bands, frames).
        frame_counts: (clips,).
        targets, lengths: the symbols of every clip; see `to_targets`.
        skills: of each sequence.
    """

    seen: Batch
    weights: torch.Tensor
    spectra: torch.Tensor
    frame_counts: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    skills: list[str]


def build_batch(tokenizer: Tokenizer, portions: Portions, pool: Pool, seed: str, number: int) -> SensesBatch:
    """Batch `number` of those that follow from the seed."""
    rng = random.Random(f"{seed}/{number}")
    lessons: list[Lesson] = []
    room = {"pictures": portions.pictures, "clips": portions.clips}
    makers: list[Callable[[], Lesson]] = [
        *[lambda: film_lesson(tokenizer, rng, portions.length, portions.moving)] * portions.of_films,
        *[lambda: _sound(tokenizer, portions, pool, rng, "voice")] * portions.of_voices,
        *[lambda: _sound(tokenizer, portions, pool, rng, "beeps")] * portions.of_beeps,
        *[lambda: picture_lesson(tokenizer, rng, portions.length, portions.hard)] * portions.of_pictures,
    ]
    for index, make in enumerate(makers):
        behind = len(makers) - index - 1
        while True:
            lesson = make()
            # Every sequence still to come may need a picture or two, or a clip.
            if len(lesson.scenes) + behind <= room["pictures"] and len(lesson.clips) <= room["clips"] - max(
                0, behind - portions.of_pictures
            ):
                break
        room["pictures"] -= len(lesson.scenes)
        room["clips"] -= len(lesson.clips)
        lessons.append(lesson)
    return _to_tensors(lessons, portions)


def _sound(tokenizer: Tokenizer, portions: Portions, pool: Pool, rng: random.Random, skill: str) -> Lesson:
    return sound_lesson(tokenizer, rng, portions.length, pool, skill, portions.frames)


def _to_tensors(lessons: list[Lesson], portions: Portions) -> SensesBatch:
    shape = Shape(portions.length, portions.sequences, portions.pictures)
    seen = to_tensors([lesson.sequence for lesson in lessons], shape)
    clips = [clip for lesson in lessons for clip in lesson.clips]
    spectra, frame_counts = to_spectra(clips, portions.frames)
    behind, rows_each, first = portions.pictures * MOST_CELLS, portions.frames // FRAMES_PER_ROW, 0
    weights = np.ones((portions.sequences, portions.length), np.float32)
    for index, lesson in enumerate(lessons):
        for place, (clip, row) in lesson.heard.items():
            seen.rows[index, place] = behind + (first + clip) * rows_each + row
        first += len(lesson.clips)
        weights[index] = _WEIGHTS.get(lesson.skill, _OTHER_WEIGHT)
    targets, lengths = to_targets(clips)
    spectra, frame_counts = _widened(spectra, frame_counts, portions.clips)
    skills = [lesson.skill for lesson in lessons]
    return SensesBatch(seen, torch.from_numpy(weights), spectra, frame_counts, targets, lengths, skills)


def _widened(
    spectra: torch.Tensor, frame_counts: torch.Tensor, clips: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As many clips as there is room for: what is missing is a moment of nothing."""
    missing = clips - len(spectra)
    spectra = torch.cat([spectra, spectra.new_zeros((missing, *spectra.shape[1:]))])
    return spectra, torch.cat([frame_counts, frame_counts.new_full((missing,), FRAMES_PER_ROW)])
