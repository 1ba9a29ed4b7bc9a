"""Ears learn by spelling: every clip's rows are to say its words and beeps in order (connectionist
temporal classification), before any language model listens.

Knows clips and their symbols, and how they become tensors. Knows nothing about questions.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models.senses.beeps import PITCHES, make_beeps, sound
from models.senses.ears import BANDS, FRAMES_PER_ROW, spectrum
from models.senses.pool import Pool
from models.senses.recordings import record
from models.senses.speech import WORDS, Samples

SYMBOLS = ("", *WORDS, *(f"{pitch} beep" for pitch in PITCHES))
"""What a row can say; the first says nothing."""
_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)}


@dataclass(frozen=True)
class Clip:
    """A recording and the symbols heard in it, in order."""

    recording: Samples
    symbols: tuple[str, ...]


def speech_clip(pool: Pool, rng: random.Random) -> Clip:
    number = rng.randrange(pool.size)
    return Clip(record(pool.samples(number), rng), pool.words(number))


def beeps_clip(rng: random.Random) -> Clip:
    beeps = make_beeps(rng)
    return Clip(record(sound(beeps), rng), tuple(f"{beep.pitch} beep" for beep in beeps.row))


def to_spectra(clips: list[Clip], frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded spectrograms (clips, bands, frames) and the frames of each."""
    spectra = np.zeros((len(clips), BANDS, frames), np.float32)
    counts = np.zeros(len(clips), np.int64)
    for index, clip in enumerate(clips):
        heard = spectrum(clip.recording)
        counts[index] = heard.shape[1]
        spectra[index, :, : heard.shape[1]] = heard
    return torch.from_numpy(spectra), torch.from_numpy(counts)


def to_targets(clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """All clips' symbols as numbers, one after the other, and how many each has."""
    numbers = [_NUMBERS[symbol] for clip in clips for symbol in clip.symbols]
    return torch.tensor(numbers), torch.tensor([len(clip.symbols) for clip in clips])


def spelling_loss(
    logits: torch.Tensor, frame_counts: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Of (clips, rows, symbols): the mean over clips."""
    chances = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(chances, targets, frame_counts // FRAMES_PER_ROW, lengths, zero_infinity=True)


def spelled(logits: torch.Tensor, frame_counts: torch.Tensor) -> list[tuple[str, ...]]:
    """What the likeliest symbol of every row says."""
    said = []
    for rows, frames in zip(logits.argmax(-1).tolist(), frame_counts.tolist(), strict=True):
        rows = rows[: frames // FRAMES_PER_ROW]
        kept = [row for row, before in zip(rows, [0, *rows[:-1]], strict=True) if row and row != before]
        said.append(tuple(SYMBOLS[row] for row in kept))
    return said
