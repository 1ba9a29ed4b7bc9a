"""What is measured: the workloads, and the load that each is put under.

Knows numbers of requests and tokens. Does not know who is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from percept.bench import Load, Workload

TEXT = Workload(prompt_tokens=123, output_tokens=64)
# With the 256 tokens of a 448x448 picture and the two around it, 297 tokens in all.
IMAGE = Workload(prompt_tokens=39, output_tokens=32, images=1, image_width=448, image_height=448)
# Every tenth request is heavy; the others come and go, so that there are many to take a p99 of.
MIX = replace(TEXT, output_tokens=8, images=1, image_share=0.1)
MIX_RATE = 1.5
"""Requests per second: two cores sustain it, so that waiting is about order and not about backlog."""


@dataclass(frozen=True, slots=True)
class Case:
    """One workload under one load.

    Attributes:
        name: in tables and files.
        workload: what is asked.
        load: when.
        first_round_only: no bar is about it, and one look is enough.
    """

    name: str
    workload: Workload
    load: Load
    first_round_only: bool = False

    @property
    def has_images(self) -> bool:
        """Some requests carry pictures."""
        return self.workload.images > 0

    def with_requests(self, count: int) -> Self:
        """The same with so many requests at most."""
        return replace(self, load=replace(self.load, requests=min(self.load.requests or count, count)))

    def seeded(self, seed: int) -> Self:
        """The same with other prompts, pictures and arrival times."""
        return replace(self, workload=replace(self.workload, seed=seed), load=replace(self.load, seed=seed))

    def to_json(self) -> dict[str, Any]:
        """What a report needs to say about it."""
        load = {"concurrency": self.load.concurrency, "rate": self.load.rate}
        return {
            "input_tokens_of_text": self.workload.prompt_tokens,
            "output_tokens": self.workload.output_tokens,
            "images": self.workload.images,
            "image_share": self.workload.image_share if self.workload.images else 0.0,
            "requests": self.load.requests,
            "duration_s": self.load.duration_s,
            **{name: value for name, value in load.items() if value is not None},
        }


def cases(*, quick: bool = False) -> list[Case]:
    """All cases in the order in which they are run; fewer and shorter ones with `quick`."""
    found = [
        _closed("text-1", TEXT, 1, 4 if quick else 6),
        _closed("text-4", TEXT, 4, 12),
        _closed("text-16", TEXT, 16, 16 if quick else 32),
        _closed("image-1", IMAGE, 1, 3 if quick else 6),
        _closed("image-4", IMAGE, 4, 12),
        _closed("image-16", IMAGE, 16, 16 if quick else 32),
        Case("mixed", MIX, Load.open(MIX_RATE, duration_s=20 if quick else 45, warmup=2)),
    ]
    return [case for case in found if not (quick and case.first_round_only)]


def _closed(name: str, workload: Workload, concurrency: int, requests: int) -> Case:
    load = Load.closed(concurrency, requests=requests, warmup=min(concurrency, 2))
    return Case(name, workload, load, first_round_only=concurrency == 4)


WARM_UP = (
    Case("warm-up text", replace(TEXT, output_tokens=8, seed=101), Load.closed(1, requests=2, warmup=0)),
    Case("warm-up texts", replace(TEXT, output_tokens=8, seed=102), Load.closed(16, requests=16, warmup=0)),
    Case("warm-up image", replace(IMAGE, output_tokens=8, seed=103), Load.closed(2, requests=4, warmup=0)),
)
"""What every server gets before anything is timed."""
