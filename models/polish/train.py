"""`python -m models.polish`: makes the bundled model of the one that hears, or continues, and exports it.

Knows nothing about how a step is made: it only says where things go and how long it lasts.
"""

import argparse
from pathlib import Path

from models import BUNDLED
from models.polish.export import export
from models.polish.loop import train
from models.polish.plan import Plan
from models.senses.train import HEARING

_FOLDER = Path(__file__).parents[1] / ".training" / "polish"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.polish", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes of one thread each")
    parser.add_argument("--model", type=Path, default=HEARING, help="the model that hears, of models.senses")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for items, checkpoints and the log")
    parser.add_argument("--output", type=Path, default=BUNDLED, help="where the model is exported to")
    chosen = parser.parse_args()
    if chosen.output.resolve() == chosen.model.resolve():
        parser.error("--output must not be --model")
    plan = Plan(steps=chosen.steps, seed=chosen.seed, workers=chosen.workers)
    export(train(plan, chosen.model, chosen.folder), plan, chosen.model, chosen.output)


if __name__ == "__main__":
    main()
