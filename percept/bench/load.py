"""When requests are sent: so many at a time, or at a rate whatever the server does.

Knows time alone. Does not know what is sent.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from percept.bench.checks import require

DEFAULT_WARMUP = 3


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop (`concurrency`) or an open one (`rate`), until a count or a time is reached.

    A closed loop sends the next request when one has been answered, so a slow server
    is asked less. An open loop sends at times that were drawn before: what the
    server cannot take queues up, and the wait counts.

    Attributes:
        concurrency: requests under way at any time; None for an open loop.
        rate: requests per second on average; None for a closed loop.
        requests: how many are sent, or None.
        duration_s: seconds during which requests are sent, or None. Those under way then are
            waited for and counted.
        arrivals: gaps of an open loop, "poisson" (exponential) or "even".
        warmup: requests sent before and not counted. Where pictures repeat, at least one for each of
            the pool; 0 for none at all.
        seed: of the arrival times.

    Raises:
        InvalidRequestError: both or none of two that exclude each other, or a senseless number.
    """

    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    arrivals: Literal["poisson", "even"] = "poisson"
    warmup: int = DEFAULT_WARMUP
    seed: int = 0

    def __post_init__(self) -> None:
        one = (self.concurrency is None) != (self.rate is None)
        require(one, "concurrency", "and rate exclude each other, and one of them is needed")
        bounded = self.requests is not None or self.duration_s is not None
        require(bounded, "requests", "or duration_s must say when it ends")
        for name in ("concurrency", "requests"):
            count = getattr(self, name)
            require(count is None or count >= 1, name, "must be at least 1")
        for name in ("rate", "duration_s"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "must be more than 0")
        require(self.warmup >= 0, "warmup", "must not be negative")

    @classmethod
    def closed(
        cls,
        concurrency: int,
        *,
        requests: int | None = None,
        duration_s: float | None = None,
        warmup: int = DEFAULT_WARMUP,
    ) -> Self:
        """A closed loop."""
        return cls(concurrency=concurrency, requests=requests, duration_s=duration_s, warmup=warmup)

    @classmethod
    def open(
        cls,
        rate: float,
        *,
        requests: int | None = None,
        duration_s: float | None = None,
        arrivals: Literal["poisson", "even"] = "poisson",
        warmup: int = DEFAULT_WARMUP,
        seed: int = 0,
    ) -> Self:
        """An open loop of `rate` requests per second."""
        return cls(
            rate=rate,
            requests=requests,
            duration_s=duration_s,
            arrivals=arrivals,
            warmup=warmup,
            seed=seed,
        )

    @property
    def total(self) -> int | None:
        """How many requests will be sent, where that can be known before."""
        if self.rate is not None and self.duration_s is not None:
            return len(self.arrival_times())
        return self.requests if self.duration_s is None else None

    def arrival_times(self) -> list[float]:
        """When each request of an open loop is due, in seconds after its start. The first is due at once."""
        due = itertools.takewhile(
            lambda time_s: self.duration_s is None or time_s < self.duration_s, self._times()
        )
        return list(itertools.islice(due, self.requests))

    def _times(self) -> Iterator[float]:
        assert self.rate is not None
        lots = random.Random(f"arrivals {self.seed}")
        gaps = (
            lots.expovariate(self.rate) if self.arrivals == "poisson" else 1 / self.rate
            for _ in itertools.count()
        )
        return itertools.accumulate(gaps, initial=0.0)
