"""`python -m models.training.illustrations`: draws the pictures in `examples/`, with questions and answers.

Knows nothing about the model: whether it answers rightly is for a test to say.
"""

import json
from pathlib import Path

from models.training.drawing import draw
from models.training.scenes import Background, Number, Scene, Spoiling, Thing

FOLDER = Path(__file__).parents[2] / "examples"
_CLEAN = Spoiling(0.0, 0.0, None)

_SCENES = {
    "shapes.png": Scene(
        256,
        256,
        Background("flat", "light", (0.2, 0.1, 0.6), 1),
        (
            Thing("circle", "red", 0.27, 0.36, 0.34, 0.0),
            Thing("square", "blue", 0.74, 0.66, 0.3, 6.0),
        ),
        None,
        _CLEAN,
    ),
    "number.png": Scene(
        320,
        240,
        Background("gradient", "light", (-0.4, 0.2, 0.5), 2),
        (),
        Number("42", "purple", 0.5, 0.5, 0.42, 3.0, 0.03),
        _CLEAN,
    ),
    "pair_a.png": Scene(
        192,
        192,
        Background("flat", "dark", (0.1, -0.2, 0.3), 3),
        (Thing("star", "yellow", 0.5, 0.5, 0.42, 0.0),),
        None,
        _CLEAN,
    ),
    "pair_b.png": Scene(
        192,
        192,
        Background("specks", "light", (0.3, 0.3, -0.1), 4),
        (
            Thing("triangle", "green", 0.25, 0.3, 0.27, 0.0),
            Thing("cross", "orange", 0.72, 0.32, 0.27, 5.0),
            Thing("ring", "purple", 0.5, 0.75, 0.28, 0.0),
        ),
        None,
        _CLEAN,
    ),
}
_ANSWERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("shapes.png",), "What is in the picture?", "A red circle to the left of a blue square."),
    (("shapes.png",), "What colour is the square?", "Blue."),
    (("shapes.png",), "How many shapes are there?", "Two."),
    (("shapes.png",), "Is there a green shape?", "No."),
    (("number.png",), "What number is shown?", "42."),
    (("number.png",), "What colour is the number?", "Purple."),
    (("pair_a.png",), "Describe this picture.", "A yellow star."),
    (("pair_b.png",), "How many shapes are there?", "Three."),
    (("pair_a.png", "pair_b.png"), "Which picture has more shapes?", "The second."),
    (("pair_a.png", "pair_b.png"), "What is in the first picture?", "A yellow star."),
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, scene in _SCENES.items():
        draw(scene).save(FOLDER / name, optimize=True)
    known = [
        {"pictures": list(pictures), "question": question, "answer": answer}
        for pictures, question, answer in _ANSWERS
    ]
    (FOLDER / "answers.json").write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
