"""The training loop: the language model alone, over rows computed ahead; a rerun continues.

One process per worker, each with one thread and its own share of the batch; they meet once per step, to
average gradients. Knows nothing about what is in a batch.
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from tqdm import tqdm

from models.polish.batches import Batch, build_batch
from models.polish.exam import Exam, accuracy, picture_exam, senses_exam
from models.polish.lessons import COMPARING, LOCATING, POLISHING
from models.polish.network import HINT_WEIGHT, LanguageModel, deepen, losses, open_thinker
from models.polish.plan import Plan
from models.polish.stock import Sizes, Stock, Towers, make_stock
from models.senses import tokens
from models.senses.plan import rate_share
from models.training.loop import average_gradients
from models.training.optimizers import Optimizers
from models.training.workers import meeting_at, work_together

_STOCK_SEED, _UNSEEN_SEED = "stock", "unseen"
_UNSEEN = Sizes(singles=32, pairs=32, films=100, conversations=32, voices=100, beeps=100)
_EXAM_SEED = 5
_EXAM_CASES = 630
_EXAM_SENSES = 100
_NEW_SHARE = 0.02


def train(plan: Plan, model: Path, folder: Path) -> Path:
    """Trains to the end of the plan, from the last checkpoint if there is one; returns the checkpoint.

    Args:
        model: the checkpoint folder of the model that is to be polished.
    """
    make_stock(folder / "stock", model, _STOCK_SEED, plan.sizes, plan.workers)
    make_stock(folder / "unseen", model, _UNSEEN_SEED, _UNSEEN, plan.workers)
    return work_together(_work, plan.workers, folder, plan, model, folder)


def _work(number: int, meeting: Path, plan: Plan, model: Path, folder: Path) -> None:
    """One worker's whole run; worker 0 also shows progress and saves."""
    with meeting_at(meeting, number, plan.workers):
        worker, loss, off = Worker(number, plan, model, folder), 0.0, 0.0
        with tqdm(
            total=plan.steps, initial=worker.done, desc="polishing", unit="step", disable=number > 0
        ) as bar:
            while worker.done < plan.steps:
                spoken, hinted = worker.step()
                loss, off = loss + (spoken - loss) * _NEW_SHARE, off + (hinted - off) * _NEW_SHARE
                bar.update()
                if worker.done % 10 == 0:
                    bar.set_postfix(loss=f"{loss:.4f}", off=f"{off:.3f}")
                if number == 0 and (worker.done % plan.save_every == 0 or worker.done == plan.steps):
                    worker.save()
                    worker.log(loss, off)


class Worker:
    """One copy of the language model, kept equal to the other workers' by averaging every gradient."""

    def __init__(self, number: int, plan: Plan, model: Path, folder: Path) -> None:
        self._number, self._plan, self._model, self._folder = number, plan, model, folder
        self._tokenizer = tokens.build_tokenizer()
        self._stock = Stock(folder / "stock", _STOCK_SEED)
        torch.manual_seed(plan.seed)
        thinker = open_thinker(model)
        deepen(thinker, plan.behind)
        thinker.set_attn_implementation("eager")
        self._learner = LanguageModel(thinker)
        self._optimizers = Optimizers(self._learner, plan.rate, plan.matrix_rate)
        self.done = self._resume()
        self._forward: Any = torch.compile(self._learner, dynamic=False) if plan.compiled else self._learner
        self._ahead = ThreadPoolExecutor(1)
        self._waiting: Future[Batch] = self._ahead.submit(self._batch, self.done)
        self._began = time.monotonic()

    def step(self) -> tuple[float, float]:
        """One step on this worker's share of the batch; the losses of answers and of hints."""
        plan, tensors = self._plan, self._waiting.result().tensors()
        self._waiting = self._ahead.submit(self._batch, self.done + 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            known = self._forward(tensors)
        spoken, *hinted = losses(known, tensors)
        total = spoken + HINT_WEIGHT * sum(hinted)
        total.backward()  # type: ignore[no-untyped-call]
        if plan.workers > 1:
            average_gradients(self._learner, plan.workers)
        torch.nn.utils.clip_grad_norm_(self._learner.parameters(), 1.0)
        self._optimizers.step(rate_share(self.done, plan.steps, plan.warmup, plan.level))
        self.done += 1
        return spoken.item(), sum(off.item() for off in hinted)

    def _batch(self, number: int) -> Batch:
        plan, share = self._plan, number * self._plan.workers + self._number
        compared = plan.locating + plan.comparing
        makers = LOCATING if number < plan.locating else COMPARING if number < compared else POLISHING
        return build_batch(self._tokenizer, self._stock, plan.shape, str(plan.seed), share, makers)

    def save(self) -> None:
        """Replaces the checkpoint at once, so that an interruption never leaves half of one."""
        path = self._folder / "checkpoint.pt"
        partial = path.with_suffix(".partial")
        state = {
            "done": self.done,
            "learner": self._learner.state_dict(),
            "optimizers": self._optimizers.state(),
        }
        torch.save(state, partial)
        partial.replace(path)

    def log(self, loss: float, off: float) -> None:
        """Writes down the losses, and how unseen questions are answered."""
        line: dict[str, Any] = {"step": self.done, "loss": round(loss, 4), "off": round(off, 3)}
        for exam in self._exams:
            line |= accuracy(self._learner, exam)
        line["seconds"] = round(time.monotonic() - self._began)
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    @cached_property
    def _exams(self) -> tuple[Exam, Exam]:
        unseen = Stock(self._folder / "unseen", _UNSEEN_SEED)
        return (
            picture_exam(self._tokenizer, Towers(self._model), _EXAM_SEED, _EXAM_CASES),
            senses_exam(self._tokenizer, unseen, _EXAM_SENSES),
        )

    def _resume(self) -> int:
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return 0
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self._learner.load_state_dict(state["learner"])
        self._optimizers.load(state["optimizers"])
        done: int = state["done"]
        return min(done, self._plan.steps)
