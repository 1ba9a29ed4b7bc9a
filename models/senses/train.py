"""`python -m models.senses`: teaches the model that sees to hear and to watch, or continues, and exports it.

Knows nothing about how a step is made: it only says where things go and how long it lasts.
"""

import argparse
from pathlib import Path

from models.senses.export import export
from models.senses.loop import train
from models.senses.plan import Plan
from models.training.train import SEEING

_FOLDER = Path(__file__).parents[1] / ".training"
HEARING = _FOLDER / "hearing"
"""The model that sees, watches and hears, of which `models.polish` makes the bundled one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.senses", description=__doc__)
    parser.add_argument("--spelling", type=int, default=Plan.spelling, help="steps of the ears alone")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="steps of ears and language model")
    parser.add_argument("--refining", type=int, default=Plan.refining, help="steps on what is hardest")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes of one thread each")
    parser.add_argument("--seeing", type=Path, default=SEEING, help="the model that sees, of models.training")
    parser.add_argument("--folder", type=Path, default=_FOLDER / "senses", help="for checkpoints and the log")
    parser.add_argument("--output", type=Path, default=HEARING, help="where the model is exported to")
    chosen = parser.parse_args()
    plan = Plan(
        spelling=chosen.spelling,
        steps=chosen.steps,
        refining=chosen.refining,
        seed=chosen.seed,
        workers=chosen.workers,
    )
    export(train(plan, chosen.seeing, chosen.folder), chosen.seeing, chosen.output)


if __name__ == "__main__":
    main()
