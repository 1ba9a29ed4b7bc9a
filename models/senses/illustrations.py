"""`python -m models.senses.illustrations`: the recordings and films in `examples/`, with their questions.

Adds its questions to those that `models.training.illustrations` wrote. Knows nothing about the model: whether
it answers rightly is for a test to say.
"""

import json
import random
from dataclasses import replace

from models.senses.beeps import Beep, Beeps, sound
from models.senses.films import Film
from models.senses.media import mp4, wav
from models.senses.recordings import record
from models.senses.speech import Utterance, speak
from models.training.illustrations import FOLDER
from models.training.scenes import Background, Scene, Spoiling, Thing

_VOICE = Utterance(("three", "seven", "red", "circle"), "en-us", 140, 50, pause=False)
_BEEPS = Beeps((Beep("high", 2200.0, 0.2, 0.25),) * 3, 0.0)
_STILL = Scene(240, 240, Background("flat", "light", (0.2, 0.1, 0.6), 1), (), None, Spoiling(0.0, 0.0, None))
_CIRCLE = Thing("circle", "red", 0.2, 0.5, 0.3, 0.0)
_STAR = Thing("star", "blue", 0.28, 0.3, 0.34, 0.0)
_SQUARE = Thing("square", "green", 0.72, 0.7, 0.3, 0.0)

_MOVING = Film(
    tuple(replace(_STILL, things=(replace(_CIRCLE, x=x),)) for x in (0.2, 0.4, 0.6, 0.8)), "right", (_CIRCLE,)
)
_APPEARING = Film(
    tuple(replace(_STILL, things=things) for things in ((_STAR,), (_STAR,), (_STAR, _SQUARE))),
    None,
    (_STAR, _SQUARE),
)
_ANSWERS = (
    ("sounds", "voice.wav", "What does the voice say?", "Three seven red circle."),
    ("sounds", "beeps.wav", "What do you hear?", "Three high beeps."),
    ("sounds", "beeps.wav", "How many beeps are there?", "Three."),
    ("films", "moving.mp4", "Which way does the circle move?", "Right."),
    ("films", "moving.mp4", "What happens in the video?", "A red circle moves right."),
    ("films", "appearing.mp4", "What appears first?", "A blue star."),
)


def main() -> None:
    rng = random.Random(1)
    (FOLDER / "voice.wav").write_bytes(wav(record(speak(_VOICE), rng)))
    (FOLDER / "beeps.wav").write_bytes(wav(record(sound(_BEEPS), rng)))
    (FOLDER / "moving.mp4").write_bytes(mp4(_MOVING))
    (FOLDER / "appearing.mp4").write_bytes(mp4(_APPEARING))
    path = FOLDER / "answers.json"
    pictures = [known for known in json.loads(path.read_text()) if "pictures" in known]
    heard = [
        {kind: [name], "question": question, "answer": answer} for kind, name, question, answer in _ANSWERS
    ]
    path.write_text(json.dumps([*pictures, *heard], indent=2) + "\n")


if __name__ == "__main__":
    main()
