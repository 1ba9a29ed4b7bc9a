"""Processes that learn in step: how they are started, and how they find one another.

Knows nothing about what they learn.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def work_together(work: Callable[..., None], count: int, folder: Path, *arguments: Any) -> Path:
    """Runs `work(number, meeting, *arguments)` in `count` processes; returns the checkpoint they write."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    spawn: Callable[..., object] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    spawn(work, (meeting, *arguments), count)
    return folder / "checkpoint.pt"


@contextmanager
def meeting_at(meeting: Path, number: int, count: int) -> Iterator[None]:
    """Inside, this process has one thread and can average with the `count` that meet at the same file."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=number, world_size=count
    )
    yield
    torch.distributed.destroy_process_group()
