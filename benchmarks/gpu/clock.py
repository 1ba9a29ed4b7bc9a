"""Seconds of work on a device. Knows when a device is done; knows no work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Returns when all that was queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 2) -> list[float]:
    """Wall seconds of each repeat, from a quiet device to a quiet device."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - begin)
    return found


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    """The median of `seconds`."""
    return statistics.median(seconds(work, device, repeats, warm_up))


def free_memory(device: torch.device) -> None:
    """Gives back what nobody holds any more, so that the next part finds it."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
