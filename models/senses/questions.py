"""What can be asked about a recording or a film, each question with its one right answer.

Knows nothing about samples, pixels, tokens or chat formats.
"""

import random
from collections import Counter
from dataclasses import dataclass

from models.senses.beeps import PITCHES, Beeps
from models.senses.films import Film
from models.training import wordings
from models.training.sayings import COUNTED, a, name, sentence

SAID = (
    "What does the voice say?",
    "What does the voice say?",
    "What is said?",
    "What is said in the {r}?",
    "What does the speaker say?",
    "What does it say?",
    "Which words are spoken?",
    "What words do you hear?",
    "Which words do you hear?",
    "Transcribe the {r}.",
    "Transcribe this {r}.",
    "Transcribe the speech.",
    "Transcribe the audio into text.",
    "Transcribe the English audio into text.",
    "Write down what is said.",
    "Repeat what the voice says.",
)
HEARD = (
    "What do you hear?",
    "What can you hear?",
    "What is in the {r}?",
    "Describe the {r}.",
    "Describe this {r}.",
    "What do you hear in the {r}?",
    "Tell me what you hear.",
)
BEEP_COUNT = (
    "How many {kinds} are there?",
    "How many {kinds} do you hear?",
    "How many {kinds} can you hear?",
    "How many {kinds} are in the {r}?",
    "Count the {kinds}.",
    "Count the {kinds} in the {r}.",
    "How many {kinds}?",
)
PITCH = (
    "Which pitch do the beeps have?",
    "What pitch do the beeps have?",
    "What is the pitch of the beeps?",
    "Are the beeps low, medium or high?",
    "How high are the beeps?",
    "What pitch is it?",
)
DIRECTION = (
    "Which way does {it} move?",
    "Which way does {it} go?",
    "Which way is {it} moving?",
    "In which direction does {it} move?",
    "What direction does {it} move in?",
    "Where does {it} go?",
    "Where does {it} move?",
)
FIRST = (
    "What appears first?",
    "Which {s} appears first?",
    "What comes first?",
    "What do you see first?",
    "Which {s} comes first?",
    "What is the first {s} to appear?",
)
LAST = (
    "What appears last?",
    "Which {s} appears last?",
    "What comes last?",
    "Which {s} comes last?",
    "What is the last {s} to appear?",
)
MOVER = ("What moves?", "What is moving?", "Which {s} moves?", "What moves in the {v}?")
WATCHED = (
    "What happens in the {v}?",
    "What happens?",
    "Describe the {v}.",
    "Describe this {v}.",
    "What does the {v} show?",
    "What do you see in the {v}?",
)
_RECORDING = ("recording", "audio", "clip", "sound")
_VIDEO = ("video", "video", "film", "clip")


@dataclass(frozen=True)
class Question:
    """A question and its right answer, with the skill it needs."""

    skill: str
    question: str
    answer: str


def ask_about_speech(rng: random.Random, words: tuple[str, ...]) -> Question:
    said = " ".join(words)
    if rng.random() < 0.8:
        return Question("voice", _put(rng, SAID), sentence(said))
    return Question("voice", _put(rng, HEARD), f"A voice says {said}.")


def ask_about_beeps(rng: random.Random, beeps: Beeps) -> Question:
    pitches = [beep.pitch for beep in beeps.row]
    roll = rng.random()
    if roll < 0.35:
        return Question("beeps", _put(rng, HEARD), describe_beeps(pitches))
    if roll < 0.6:
        return Question("beeps", _put(rng, BEEP_COUNT, kinds="beeps"), sentence(COUNTED[len(pitches)]))
    if roll < 0.8 or len(set(pitches)) > 1:
        pitch = rng.choice(pitches) if rng.random() < 0.75 else rng.choice(PITCHES)
        question = _put(rng, BEEP_COUNT, kinds=f"{pitch} beeps")
        return Question("beeps", question, sentence(COUNTED[pitches.count(pitch)]))
    return Question("beeps", _put(rng, PITCH), sentence(pitches[0]))


def describe_beeps(pitches: list[str]) -> str:
    """How many of which pitch, the low ones first."""
    counts = Counter(pitches)
    groups = [
        f"{COUNTED[counts[pitch]]} {pitch} beep{'s' if counts[pitch] > 1 else ''}"
        for pitch in PITCHES
        if counts[pitch]
    ]
    return sentence(" and ".join(groups))


def ask_about_film(rng: random.Random, film: Film) -> Question:
    return _ask_about_move(rng, film) if film.direction is not None else _ask_about_order(rng, film)


def _ask_about_move(rng: random.Random, film: Film) -> Question:
    thing, direction = film.order[0], film.direction
    assert direction is not None
    roll = rng.random()
    if roll < 0.6:
        it = rng.choice(("it", "the shape", f"the {thing.shape}", f"the {name(thing)}"))
        return Question("movement", _put(rng, DIRECTION, it=it), sentence(direction))
    if roll < 0.75:
        return Question("movement", _put(rng, MOVER), sentence(a(name(thing))))
    return Question("movement", _put(rng, WATCHED), film.describe())


def _ask_about_order(rng: random.Random, film: Film) -> Question:
    roll = rng.random()
    if roll < 0.5:
        return Question("order", _put(rng, FIRST), sentence(a(name(film.order[0]))))
    if roll < 0.75:
        return Question("order", _put(rng, LAST), sentence(a(name(film.order[-1]))))
    return Question("order", _put(rng, WATCHED), film.describe())


def _put(rng: random.Random, ways: tuple[str, ...], **gaps: str) -> str:
    return wordings.put(rng, ways, r=rng.choice(_RECORDING), v=rng.choice(_VIDEO), **gaps)
