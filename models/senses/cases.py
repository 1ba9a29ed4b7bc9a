"""Unseen cases by seed: recordings and films, each with one question and its right answer.

What a judge through the gateway asks. Knows nothing about how it is asked.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from models.senses.beeps import make_beeps, sound
from models.senses.films import appearing_film, moving_film
from models.senses.media import mp4, wav
from models.senses.questions import Question, ask_about_beeps, ask_about_film, ask_about_speech
from models.senses.recordings import record
from models.senses.speech import make_utterance, speak

SKILLS = ("voice", "beeps", "movement", "order")


@dataclass(frozen=True)
class SenseCase:
    """A file, a question about it and the right answer."""

    kind: Literal["audio", "video"]
    file: bytes
    question: Question


@dataclass(frozen=True)
class Dictation:
    """A spoken file and its words."""

    file: bytes
    words: tuple[str, ...]


def sense_cases(seed: int, count: int) -> Iterator[SenseCase]:
    """`count` cases, the skills in turn."""
    for index in range(count):
        yield make_case(SKILLS[index % len(SKILLS)], random.Random(f"sense/{seed}/{index}"))


def make_case(skill: str, rng: random.Random) -> SenseCase:
    if skill == "voice":
        utterance = make_utterance(rng)
        recording = record(speak(utterance), rng)
        return SenseCase("audio", wav(recording), ask_about_speech(rng, utterance.words))
    if skill == "beeps":
        beeps = make_beeps(rng)
        return SenseCase("audio", wav(record(sound(beeps), rng)), ask_about_beeps(rng, beeps))
    film = moving_film(rng) if skill == "movement" else appearing_film(rng)
    return SenseCase("video", mp4(film), ask_about_film(rng, film))


def dictations(seed: int, count: int) -> Iterator[Dictation]:
    """`count` unseen utterances."""
    for index in range(count):
        rng = random.Random(f"dictation/{seed}/{index}")
        utterance = make_utterance(rng)
        yield Dictation(wav(record(speak(utterance), rng)), utterance.words)
