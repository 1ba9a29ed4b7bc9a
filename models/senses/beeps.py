"""Beeps: short tones of a low, a middle or a high pitch, one after the other.

Knows how a row of beeps is chosen and how it sounds. Knows nothing about questions.
"""

import random
from dataclasses import dataclass

import numpy as np

from models.senses.speech import RATE, Samples

PITCHES = ("low", "medium", "high")
MOST_BEEPS = 5

_HERTZ = {"low": (180.0, 320.0), "medium": (620.0, 950.0), "high": (1900.0, 3000.0)}
_OVERTONES = (0.0, 0.0, 0.25)
_FADE = 0.01


@dataclass(frozen=True)
class Beep:
    """One tone. `length` and the `gap` behind it are seconds."""

    pitch: str
    hertz: float
    length: float
    gap: float


@dataclass(frozen=True)
class Beeps:
    """A row of beeps; `overtone` is the share of the third harmonic."""

    row: tuple[Beep, ...]
    overtone: float


def make_beeps(rng: random.Random) -> Beeps:
    """One to five beeps, of one pitch or of two."""
    count = rng.randint(1, MOST_BEEPS)
    pitches = [rng.choice(PITCHES)] * count
    if count > 1 and rng.random() < 0.35:
        both = rng.sample(PITCHES, 2)
        pitches = [*both, *rng.choices(both, k=count - 2)]
        rng.shuffle(pitches)
    hertz = {pitch: rng.uniform(*_HERTZ[pitch]) for pitch in PITCHES}
    length, gap = rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.4)
    return Beeps(
        tuple(
            Beep(pitch, hertz[pitch], length * rng.uniform(0.9, 1.1), gap * rng.uniform(0.9, 1.1))
            for pitch in pitches
        ),
        rng.choice(_OVERTONES),
    )


def sound(beeps: Beeps) -> Samples:
    """Samples at `RATE`, (samples,), from -1 to 1."""
    pieces: list[Samples] = []
    for beep in beeps.row:
        pieces += [_tone(beep, beeps.overtone), np.zeros(int(beep.gap * RATE), np.float32)]
    return np.concatenate(pieces[:-1])


def _tone(beep: Beep, overtone: float) -> Samples:
    times = np.arange(int(beep.length * RATE)) / RATE
    wave = np.sin(2 * np.pi * beep.hertz * times)
    wave += overtone * np.sin(6 * np.pi * beep.hertz * times)
    edges = np.minimum(times, times[::-1]) / _FADE
    return (0.5 * wave * np.clip(edges, 0, 1)).astype(np.float32)
