"""The training loop: workers that learn in step, checkpoints from which a rerun continues, a progress bar.

One process per worker, each with one thread and its own share of the batch; they meet once per step, to
average gradients, which wastes less than threads that meet at every operation. Knows nothing about what
is in a batch. Everything follows from the seed and the step number.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from tqdm import tqdm

from models.training import vocabulary
from models.training.conversations import BROAD, HARD
from models.training.examples import build_batch
from models.training.network import Learner, new_config
from models.training.optimizers import Optimizers
from models.training.plan import SHAPE, Plan, rate_share
from models.training.unseen import unseen_accuracy
from models.training.workers import meeting_at, work_together


def train(plan: Plan, folder: Path) -> Path:
    """Trains to the end of the plan, from the last checkpoint if there is one; returns the checkpoint."""
    return work_together(_work, plan.workers, folder, plan, folder)


def _work(number: int, meeting: Path, plan: Plan, folder: Path) -> None:
    """One worker's whole run; worker 0 also shows progress and saves."""
    with meeting_at(meeting, number, plan.workers):
        worker = Worker(number, plan, folder)
        bar = tqdm(
            total=plan.total,
            initial=worker.done,
            desc="percept-tiny",
            unit="step",
            smoothing=0.05,
            disable=number > 0,
        )
        with bar:
            while worker.done < plan.total:
                spoken, seen = worker.step()
                bar.update()
                if worker.done % 10 == 0:
                    bar.set_postfix(answers=f"{spoken:.4f}", cells=f"{seen:.4f}")
                if number == 0 and (worker.done % plan.save_every == 0 or worker.done == plan.total):
                    worker.save()
                    worker.log(spoken, seen)


class Worker:
    """One copy of the learner, kept equal to the other workers' by averaging every gradient."""

    def __init__(self, number: int, plan: Plan, folder: Path) -> None:
        self._number = number
        self._plan = plan
        self._folder = folder
        self._tokenizer = vocabulary.build_tokenizer()
        torch.manual_seed(plan.seed)
        self._learner = Learner(new_config())
        self._optimizers = Optimizers(self._learner, plan.rate, plan.matrix_rate)
        self.done = self._resume()
        self._forward: Callable[..., tuple[torch.Tensor, torch.Tensor]] = (
            torch.compile(self._learner, dynamic=False) if plan.compiled else self._learner
        )
        self._began = time.monotonic()

    def step(self) -> tuple[float, float]:
        """One step on this worker's share of the batch; the losses of answers and of cells."""
        share = self.done * self._plan.workers + self._number
        refining = self.done >= self._plan.steps
        if refining and self._learner.tower_learns:
            self._learner.freeze_tower()
        batch = build_batch(self._tokenizer, SHAPE, self._plan.seed, share, HARD if refining else BROAD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            spoken, seen = self._forward(batch.tensors())
        (spoken + seen).backward()  # type: ignore[no-untyped-call]
        if self._plan.workers > 1:
            average_gradients(self._learner, self._plan.workers)
        torch.nn.utils.clip_grad_norm_(self._learner.parameters(), 1.0)
        self._optimizers.step(rate_share(self._plan, self.done))
        self.done += 1
        return spoken.item(), seen.item()

    def save(self) -> None:
        """Replaces the checkpoint at once, so that an interruption never leaves half of one."""
        path = self._folder / "checkpoint.pt"
        partial = path.with_suffix(".partial")
        state = {
            "plan": asdict(self._plan),
            "done": self.done,
            "learner": self._learner.state_dict(),
            "optimizers": self._optimizers.state(),
        }
        torch.save(state, partial)
        partial.replace(path)

    def log(self, spoken: float, seen: float) -> None:
        line = {
            "step": self.done,
            "answers": spoken,
            "cells": seen,
            "unseen": unseen_accuracy(self._learner),
            "seconds": round(time.monotonic() - self._began),
        }
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _resume(self) -> int:
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return 0
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self._learner.load_state_dict(state["learner"])
        self._optimizers.load(state["optimizers"])
        done: int = state["done"]
        return min(done, self._plan.total)


def average_gradients(learner: torch.nn.Module, workers: int) -> None:
    """Every worker ends up with the mean of all workers' gradients."""
    gradients = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= workers
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
