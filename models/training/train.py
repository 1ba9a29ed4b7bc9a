"""`python -m models.training.train`: trains the model that sees, or continues a stopped run, and exports it.

Knows nothing about how a step is made: it only says where things go and how long it lasts.
"""

import argparse
from pathlib import Path

from models.training.export import export
from models.training.loop import train
from models.training.plan import Plan

_FOLDER = Path(__file__).parents[1] / ".training"
SEEING = _FOLDER / "seeing"
"""The model that sees, of which `models.senses` makes the one that hears."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="steps before the refining ones")
    parser.add_argument("--refining", type=int, default=Plan.refining, help="steps on what is hardest")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes of one thread each")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where checkpoints and the log go")
    parser.add_argument("--output", type=Path, default=SEEING, help="where the model is exported to")
    chosen = parser.parse_args()
    plan = Plan(steps=chosen.steps, refining=chosen.refining, seed=chosen.seed, workers=chosen.workers)
    export(train(plan, chosen.folder), chosen.output)


if __name__ == "__main__":
    main()
