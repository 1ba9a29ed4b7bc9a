"""How long and how hard to train. Knows nothing about the model."""

from dataclasses import dataclass, field

from models.senses.batches import Portions


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train.

    Attributes:
        spelling: steps in which the ears alone learn, by spelling what they hear.
        steps: steps after them, in which the language model learns to listen and to watch.
        refining: steps at the end, which dwell on what is hardest; their rate begins at `refining_share`.
        level: the share of the steps of a stage in which the rate stays level before it falls to zero.
        utterances: how many are spoken ahead.
    """

    spelling: int = 2600
    steps: int = 5000
    refining: int = 2500
    seed: int = 0
    spelling_rate: float = 1.2e-3
    rate: float = 5e-4
    matrix_rate: float = 1.0e-3
    warmup: int = 100
    level: float = 0.4
    refining_share: float = 0.5
    utterances: int = 40000
    save_every: int = 100
    workers: int = 2
    compiled: bool = True
    portions: Portions = field(default_factory=Portions)
    refining_portions: Portions = field(
        default_factory=lambda: Portions(
            of_pictures=9, of_films=3, of_voices=2, of_beeps=2, moving=0.35, hard=0.65, pictures=30
        )
    )


def rate_share(step: int, steps: int, warmup: int, level: float) -> float:
    """The share of the full rate at a step: up, level, down to nothing."""
    falling = (steps - step) / max(1.0, steps * (1 - level))
    return min(1.0, (step + 1) / warmup, falling)
