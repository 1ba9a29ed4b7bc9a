"""How long and how hard to train. Knows nothing about the model."""

from dataclasses import dataclass

from models.training.examples import Shape

SHAPE = Shape(length=176, sequences=16, pictures=22)
"""One worker's share of a batch."""


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train.

    The first `steps` learn from all kinds of conversation alike; their rate is level until the last
    `decay` share of them, in which it falls to zero. The `refining` steps after them teach only the
    language model, whose turn comes last: by then the tower sees nearly everything. They dwell on what
    is hardest, and their rate falls from `refining_share` of the full one to zero.
    """

    steps: int = 6000
    refining: int = 2500
    seed: int = 0
    rate: float = 1.2e-3
    matrix_rate: float = 2.5e-3
    warmup: int = 200
    decay: float = 0.35
    refining_share: float = 1.0
    save_every: int = 125
    compiled: bool = True
    workers: int = 2

    @property
    def total(self) -> int:
        return self.steps + self.refining


def rate_share(plan: Plan, step: int) -> float:
    """The share of the full learning rate at a step: up, level, down to nothing; then once more, lower."""
    if step >= plan.steps:
        return plan.refining_share * (plan.total - step) / plan.refining
    falling_from = plan.steps * (1 - plan.decay)
    falling = (plan.steps - step) / max(1.0, plan.steps - falling_from)
    return min(1.0, (step + 1) / plan.warmup, falling)
