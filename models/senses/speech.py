"""What voices say: words of a small vocabulary, spoken by espeak-ng with many voices, speeds and pitches.

Knows the words and how an utterance is chosen and spoken. Knows nothing about noise or spectrograms. Needs
the program `espeak-ng` (Debian: apt-get install espeak-ng).
"""

import random
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from models.training.scenes import COLOURS, SHAPES

RATE = 16000
"""Samples a second."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*DIGITS, *COLOURS, *SHAPES, "left", "right", "above", "below", "yes", "no")
MOST_WORDS = 6

_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
_VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5")
_OWN_RATE = 22050
_WAV_HEADER = 44

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """Words and how they are spoken.

    Attributes:
        voice: espeak-ng's name of it, with a variant.
        speed: words a minute.
        pitch: 0 to 99.
        pause: whether the words are set apart by commas.
    """

    words: tuple[str, ...]
    voice: str
    speed: int
    pitch: int
    pause: bool


def make_utterance(rng: random.Random) -> Utterance:
    """One to six words; often only digits."""
    count = rng.choices(range(1, MOST_WORDS + 1), (4, 5, 5, 4, 2, 1))[0]
    known = DIGITS if rng.random() < 0.4 else WORDS
    return Utterance(
        words=tuple(rng.choice(known) for _ in range(count)),
        voice=rng.choice(_VOICES) + rng.choice(_VARIANTS),
        speed=rng.randint(110, 190),
        pitch=rng.randint(25, 75),
        pause=rng.random() < 0.5,
    )


def speak(utterance: Utterance) -> Samples:
    """The utterance's samples at `RATE`, (samples,), from -1 to 1.

    Raises:
        RuntimeError: espeak-ng is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise RuntimeError("espeak-ng is needed to speak; install it (Debian: apt-get install espeak-ng)")
    text = (", " if utterance.pause else " ").join(utterance.words)
    spoken = subprocess.run(
        [
            program,
            "--stdout",
            "-v",
            utterance.voice,
            "-s",
            str(utterance.speed),
            "-p",
            str(utterance.pitch),
            text,
        ],
        check=True,
        capture_output=True,
    ).stdout
    samples = np.frombuffer(spoken[_WAV_HEADER:], "<i2").astype(np.float32) / 32768
    resampled: Samples = soxr.resample(samples, _OWN_RATE, RATE)
    return _trimmed(resampled)


def _trimmed(samples: Samples) -> Samples:
    """Without the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]
