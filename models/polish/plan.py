"""How deep, how long and how hard to polish. Knows nothing about the model."""

from dataclasses import dataclass, field

from models.polish.batches import Shape
from models.polish.stock import Sizes


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train.

    Attributes:
        behind: the layers of the language model behind which new ones are put.
        locating: the first steps, in which things are only mentioned and located.
        comparing: the steps after them, in which two things of a picture are compared and nothing else.
        steps: of training, those included; the rate rises for `warmup` of them, is level for a share of
            `level` of them, and falls to zero.
        rate: of AdamW, for vectors and embeddings.
        matrix_rate: of Muon, for matrices.
    """

    behind: tuple[int, ...] = (1, 3)
    locating: int = 600
    comparing: int = 600
    steps: int = 6000
    seed: int = 0
    rate: float = 4e-4
    matrix_rate: float = 1.0e-3
    warmup: int = 200
    level: float = 0.4
    save_every: int = 400
    workers: int = 2
    compiled: bool = True
    shape: Shape = field(default_factory=Shape)
    sizes: Sizes = field(default_factory=Sizes)
