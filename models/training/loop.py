"""The training loop: warm up, hold, decay; checkpoints from which a rerun continues; a progress bar.

One process per worker, each with one thread and its own half of the batch; they meet once per step, to
average gradients, which wastes less than threads that meet at every operation. Knows nothing about what
is in a batch. Everything follows from the seed and the step number.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from tqdm import tqdm
from transformers import Qwen2VLConfig

from models.training import vocabulary
from models.training.examples import IGNORED, Batch, Shape, build_batch
from models.training.network import Learner, Sizes, answer_logits, build_config, encode_pictures

SHAPE = Shape(length=176, sequences=16, pictures=22)
_UNSEEN_SEED = 1_000_003
_UNSEEN_BATCHES = 5


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train. `decay` is the share of steps in which the rate falls to zero."""

    steps: int = 6000
    seed: int = 0
    rate: float = 1.2e-3
    matrix_rate: float = 2.5e-3
    warmup: int = 200
    decay: float = 0.35
    save_every: int = 250
    compiled: bool = True
    workers: int = 2


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for everything else."""

    def __init__(self, learner: Learner, plan: Plan) -> None:
        named = list(learner.named_parameters())
        inner = [parameter for name, parameter in named if _is_inner(name, parameter)]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.02},
                    {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=plan.rate,
                betas=(0.9, 0.98),
                fused=True,
            ),
            torch.optim.Muon(inner, lr=plan.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        ]
        self._rates = [plan.rate, plan.matrix_rate]

    def step(self, share: float) -> None:
        """One update at this share of the full rates; clears the gradients."""
        for part, rate in zip(self._parts, self._rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self._parts]

    def load(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and any(part in name for part in (".blocks.", ".layers.", ".merger."))


def rate_share(plan: Plan, step: int) -> float:
    """The share of the full learning rate at a step: up, level, down to nothing."""
    falling_from = plan.steps * (1 - plan.decay)
    falling = (plan.steps - step) / max(1.0, plan.steps - falling_from)
    return min(1.0, (step + 1) / plan.warmup, falling)


def special_ids() -> dict[str, int]:
    tokenizer = vocabulary.build_tokenizer()
    return {token: tokenizer.token_to_id(token) for token in vocabulary.SPECIAL}


def new_config() -> Qwen2VLConfig:
    return build_config(Sizes(), special_ids())


def train(plan: Plan, folder: Path) -> Path:
    """Trains to the end of the plan, from the last checkpoint if there is one; returns the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_work, (plan, folder, meeting), plan.workers)
    return folder / "checkpoint.pt"


def _work(worker: int, plan: Plan, folder: Path, meeting: Path) -> None:
    """One worker's whole run; worker 0 also reports and saves."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=worker, world_size=plan.workers
    )
    torch.manual_seed(plan.seed)
    learner = Learner(new_config())
    optimizers = Optimizers(learner, plan)
    done = _resume(folder / "checkpoint.pt", plan, learner, optimizers)
    forward = torch.compile(learner, dynamic=False) if plan.compiled else learner
    tokenizer = vocabulary.build_tokenizer()
    progress = tqdm(
        total=plan.steps, initial=done, desc="percept-tiny", unit="step", smoothing=0.05, disable=worker > 0
    )
    began = time.monotonic()
    for step in range(done, plan.steps):
        batch = build_batch(tokenizer, SHAPE, plan.seed, step * plan.workers + worker)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            spoken, seen = forward(batch.tensors())
        (spoken + seen).backward()
        _average_gradients(learner, plan.workers)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizers.step(rate_share(plan, step))
        progress.update()
        if step % 10 == 0:
            progress.set_postfix(answers=f"{spoken.item():.4f}", cells=f"{seen.item():.4f}")
        if worker == 0 and ((step + 1) % plan.save_every == 0 or step + 1 == plan.steps):
            _save(folder / "checkpoint.pt", plan, step + 1, learner, optimizers)
            _log(
                folder,
                step + 1,
                spoken.item(),
                seen.item(),
                unseen_accuracy(learner),
                time.monotonic() - began,
            )
    progress.close()
    torch.distributed.destroy_process_group()


def _average_gradients(learner: Learner, workers: int) -> None:
    gradients = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= workers
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def unseen_accuracy(learner: Learner) -> float:
    """The share of answers to unseen conversations whose every token would be chosen."""
    tokenizer = vocabulary.build_tokenizer()
    right = total = 0
    for number in range(_UNSEEN_BATCHES):
        batch = build_batch(tokenizer, SHAPE, _UNSEEN_SEED, number)
        hits, answers = _answers_right(learner, batch)
        right, total = right + hits, total + answers
    return right / total


@torch.no_grad()
def _answers_right(learner: Learner, batch: Batch) -> tuple[int, int]:
    """How many answers of a batch are right, token by token, and how many there are."""
    cells = encode_pictures(learner.model.model.visual, batch)
    chosen = answer_logits(learner.model, cells, batch).argmax(-1)
    asked = batch.labels != IGNORED
    wrong = asked & (chosen != batch.labels)
    starts = asked & ~torch.cat([torch.zeros_like(asked[:, :1]), asked[:, :-1]], dim=1)
    answer = starts.long().cumsum(1) - 1 + torch.arange(len(asked))[:, None] * asked.shape[1]
    return int(starts.sum()) - len(answer[wrong].unique()), int(starts.sum())


def _save(path: Path, plan: Plan, done: int, learner: Learner, optimizers: Optimizers) -> None:
    """Replaces the checkpoint at once, so that an interruption never leaves half of one."""
    partial = path.with_suffix(".partial")
    state = {
        "plan": asdict(plan),
        "done": done,
        "learner": learner.state_dict(),
        "optimizers": optimizers.state(),
    }
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, plan: Plan, learner: Learner, optimizers: Optimizers) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    learner.load_state_dict(state["learner"])
    optimizers.load(state["optimizers"])
    done: int = state["done"]
    return min(done, plan.steps)


def _log(folder: Path, step: int, spoken: float, seen: float, accuracy: float, seconds: float) -> None:
    line = {"step": step, "answers": spoken, "cells": seen, "unseen": accuracy, "seconds": round(seconds)}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
