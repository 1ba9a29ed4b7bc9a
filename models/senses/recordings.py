"""Recordings: what is heard, with silence around it, louder or softer, and noise.

Knows how sound is spoiled. Knows nothing about words or tones.
"""

import random

import numpy as np

from models.senses.speech import RATE, Samples

_MOST_SECONDS = 6.0
_SILENCE = 0.4


def record(sound: Samples, rng: random.Random) -> Samples:
    """A recording of the sound, (samples,), of six seconds at the most."""
    sound = sound[: int(_MOST_SECONDS * RATE)]
    room = int(_MOST_SECONDS * RATE) - len(sound)
    before = min(room, int(rng.uniform(0, _SILENCE) * RATE))
    behind = min(room - before, int(rng.uniform(0.05, _SILENCE) * RATE))
    loudness = 10 ** rng.uniform(-1.0, 0.0) / max(1e-4, float(np.abs(sound).max()))
    recording = np.pad(sound * np.float32(loudness), (before, behind))
    return np.clip(recording + _noise(recording, rng), -1, 1).astype(np.float32)


def _noise(recording: Samples, rng: random.Random) -> Samples:
    """White or coloured noise, from none to 15 decibels below the sound."""
    if rng.random() < 0.35:
        return np.zeros_like(recording)
    source = np.random.default_rng(rng.getrandbits(32))
    noise = source.standard_normal(len(recording), np.float32)
    if rng.random() < 0.5:
        noise = np.convolve(noise, np.ones(8) / 3, "same").astype(np.float32)
    power = float(np.sqrt(np.mean(recording**2)))
    return noise * np.float32(power * 10 ** (-rng.uniform(15, 40) / 20))
