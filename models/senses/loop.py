"""The training loop: ears first, then ears and language model; a rerun continues.

One process per worker, each with one thread and its own share of the batch; they meet once per step, to
average gradients. Knows nothing about what is in a batch.
"""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration

from models.senses.batches import SensesBatch, build_batch
from models.senses.ears import hear
from models.senses.network import SensesLearner, losses
from models.senses.plan import Plan, rate_share
from models.senses.pool import Pool, make_pool
from models.senses.spelling import Clip, beeps_clip, speech_clip, spelling_loss, to_spectra, to_targets
from models.senses.unseen import unseen_accuracy
from models.training import vocabulary
from models.training.loop import average_gradients
from models.training.optimizers import Optimizers
from models.training.workers import meeting_at, work_together

_UNSEEN_UTTERANCES = 400
_UNSEEN_BATCHES = 6
_BUCKETS = ((0, 240, 44), (240, 360, 30), (360, 600, 18))
"""Frames that clips of one batch have, from and to, and how many clips it has."""
_BUCKET_WEIGHTS = (4, 4, 3)
_SPEECH = 0.75


def train(plan: Plan, seeing: Path, folder: Path) -> Path:
    """Trains to the end of the plan, from the last checkpoint if there is one; returns the checkpoint.

    Args:
        seeing: the checkpoint folder of the model that sees.
    """
    make_pool(folder / "voices", plan.seed, plan.utterances)
    make_pool(folder / "unseen_voices", plan.seed + 1, _UNSEEN_UTTERANCES)
    return work_together(_work, plan.workers, folder, plan, seeing, folder)


def _work(number: int, meeting: Path, plan: Plan, seeing: Path, folder: Path) -> None:
    """One worker's whole run; worker 0 also shows progress and saves."""
    with meeting_at(meeting, number, plan.workers):
        worker = Worker(number, plan, seeing, folder)
        for stage, total in (
            ("spelling", plan.spelling),
            ("senses", plan.steps),
            ("refining", plan.refining),
        ):
            bar = tqdm(
                total=total,
                initial=worker.done[stage],
                desc=stage,
                unit="step",
                smoothing=0.05,
                disable=number > 0,
            )
            with bar:
                worker.run(stage, total, bar)


class Worker:
    """One copy of the learner, kept equal to the other workers' by averaging every gradient."""

    def __init__(self, number: int, plan: Plan, seeing: Path, folder: Path) -> None:
        self._number, self._plan, self._folder = number, plan, folder
        self._tokenizer = vocabulary.build_tokenizer()
        self._pool = Pool(folder / "voices")
        torch.manual_seed(plan.seed)
        self._learner = SensesLearner(
            Qwen2VLForConditionalGeneration.from_pretrained(seeing, dtype=torch.float32)
        )
        self.done = {"spelling": 0, "senses": 0, "refining": 0}
        self._state = self._read()
        self._ahead = ThreadPoolExecutor(1)
        self._began = time.monotonic()

    def run(self, stage: str, total: int, bar: Any) -> None:
        """The rest of a stage."""
        if self.done[stage] >= total:
            return
        self._optimizers = self._optimizers_of(stage)
        step: Callable[[Any], torch.Tensor] = (
            self._spelling_step() if stage == "spelling" else self._senses_step()
        )
        batch = self._batches(stage)
        full = self._share_of_rate(stage)
        waiting: Future[Any] = self._ahead.submit(batch, self.done[stage])
        while self.done[stage] < total:
            current, waiting = waiting.result(), self._ahead.submit(batch, self.done[stage] + 1)
            loss = step(current)
            loss.backward()  # type: ignore[no-untyped-call]
            self._update(full * rate_share(self.done[stage], total, self._plan.warmup, self._plan.level))
            self.done[stage] += 1
            bar.update()
            if self.done[stage] % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if self._number == 0 and (
                self.done[stage] % self._plan.save_every == 0 or self.done[stage] == total
            ):
                self._save()
                self._log(stage, loss.item())

    def _optimizers_of(self, stage: str) -> Optimizers:
        plan = self._plan
        heard = torch.nn.ModuleDict({"ears": self._learner.ears, "spelling": self._learner.spelling})
        optimizers = (
            Optimizers(heard, plan.spelling_rate, plan.spelling_rate)
            if stage == "spelling"
            else Optimizers(self._learner, plan.rate, plan.matrix_rate)
        )
        if self._state is not None and self.done[stage]:
            optimizers.load(self._state["optimizers"])
        return optimizers

    def _spelling_step(self) -> Callable[[list[Clip]], torch.Tensor]:
        learner = self._learner

        def spell(spectra: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
            spelled: torch.Tensor = learner.spelling(hear(learner.ears, spectra, frame_counts))
            return spelled

        forward = self._compiled(spell)

        def step(clips: list[Clip]) -> torch.Tensor:
            frames = next(most for _, most, count in _BUCKETS if count == len(clips))
            spectra, frame_counts = to_spectra(clips, frames)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                spelled = forward(spectra, frame_counts)
            return spelling_loss(spelled, frame_counts, *to_targets(clips))

        return step

    def _senses_step(self) -> Callable[[SensesBatch], torch.Tensor]:
        forward = self._compiled(self._learner)

        def step(batch: SensesBatch) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, spelled = forward(batch.seen.tensors(), batch.spectra, batch.frame_counts)
            spoken, spelt = losses(logits, spelled, batch)
            return spoken + spelt

        return step

    def _compiled(self, function: Any) -> Any:
        return torch.compile(function, dynamic=False) if self._plan.compiled else function

    def _update(self, share: float) -> None:
        if self._plan.workers > 1:
            average_gradients(self._learner, self._plan.workers)
        torch.nn.utils.clip_grad_norm_(self._learner.parameters(), 1.0)
        self._optimizers.step(share)

    def _clips(self, number: int) -> list[Clip]:
        rng = random.Random(f"spelling/{self._plan.seed}/{self._share(number)}")
        fewest, most, count = rng.choices(_BUCKETS, _BUCKET_WEIGHTS)[0]
        clips: list[Clip] = []
        while len(clips) < count:
            clip = speech_clip(self._pool, rng) if rng.random() < _SPEECH else beeps_clip(rng)
            if fewest * 160 < len(clip.recording) <= most * 160:
                clips.append(clip)
        return clips

    def _batches(self, stage: str) -> Callable[[int], Any]:
        """Makes batch n of a stage."""
        plan = self._plan
        if stage == "spelling":
            return self._clips
        portions = plan.refining_portions if stage == "refining" else plan.portions
        seed = f"{stage}/{plan.seed}"
        return lambda number: build_batch(self._tokenizer, portions, self._pool, seed, self._share(number))

    def _share_of_rate(self, stage: str) -> float:
        return self._plan.refining_share if stage == "refining" else 1.0

    def _share(self, number: int) -> int:
        return number * self._plan.workers + self._number

    def _save(self) -> None:
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

    def _log(self, stage: str, loss: float) -> None:
        line: dict[str, Any] = {"stage": stage, "step": self.done[stage], "loss": round(loss, 4)}
        if stage != "spelling":
            unseen = Pool(self._folder / "unseen_voices")
            line["unseen"] = unseen_accuracy(
                self._learner, self._tokenizer, self._plan.portions, unseen, _UNSEEN_BATCHES
            )
        line["seconds"] = round(time.monotonic() - self._began)
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self._learner.load_state_dict(state["learner"])
        self.done |= state["done"]
        return state
