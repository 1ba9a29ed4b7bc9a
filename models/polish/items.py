"""What lessons are about: pictures, pairs, films, conversations' pictures and recordings, by number.

Item `n` of a kind follows from the seed and n alone, so that it need not be kept. Knows nothing about
weights or tokens.
"""

import random
from dataclasses import dataclass

from models.senses.beeps import Beeps, make_beeps
from models.senses.films import Film, make_film
from models.training.conversations import BROAD, HARD, Conversation, Lesson, any_scene, converse, scene_pair
from models.training.scenes import Scene

_MOVING = 0.3
"""The share of films in which something moves."""
_SINGLES = Lesson(kinds=(1, 1, 0, 0), numbers=0.08, skills=(), counts=(6, 30, 37, 14, 13))
_EXCHANGES = 8
_HARD = 0.6


@dataclass(frozen=True)
class Items:
    """All items of a seed."""

    seed: str

    def single(self, number: int) -> Scene:
        return any_scene(self._random("single", number), _SINGLES)

    def pair(self, number: int) -> tuple[Scene, Scene]:
        return scene_pair(self._random("pair", number))

    def film(self, number: int) -> Film:
        return make_film(self._random("film", number), _MOVING)

    def conversation(self, number: int) -> Conversation:
        rng = self._random("conversation", number)
        return converse(rng, _EXCHANGES, HARD if rng.random() < _HARD else BROAD)

    def beeps(self, number: int) -> Beeps:
        return make_beeps(self._random("beeps", number))

    def noise(self, kind: str, number: int) -> random.Random:
        """How the recording of that number is spoiled."""
        return self._random(f"noise/{kind}", number)

    def _random(self, kind: str, number: int) -> random.Random:
        return random.Random(f"{self.seed}/{kind}/{number}")
