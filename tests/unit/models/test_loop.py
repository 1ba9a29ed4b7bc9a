"""A run that was stopped ends where an uninterrupted one does."""

from pathlib import Path

import pytest
import torch

from models.training.loop import Worker
from models.training.plan import Plan

PLAN = Plan(steps=3, workers=1, compiled=False, warmup=2, refining=0)


@pytest.mark.timeout(600)
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = Worker(0, PLAN, tmp_path)
        whole.step()
        whole.save()
        losses = [*whole.step(), *whole.step()]
        resumed = Worker(0, PLAN, tmp_path)
        assert resumed.done == 1
        assert [*resumed.step(), *resumed.step()] == pytest.approx(losses)
        assert resumed.done == PLAN.total
    finally:
        torch.set_num_threads(threads)
