"""An engine in this process over the real runner, with the answers of transformers' generate() to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_service.engine.engine import Engine
from llm_service.engine.messages import EngineStatus
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from shared.embedding_arena import EmbeddingArena
from tests.integration.engine_front import ARENA_BYTES, EngineFront, draw_picture, settings_for
from tests.reference import ReferenceModel


class LocalEngine:
    """An engine in this process, and its front."""

    def __init__(self, folder: Path, runner: ModelRunner, **changes: object) -> None:
        self.arena = EmbeddingArena.create(ARENA_BYTES)
        limits: dict[str, Any] = {
            "block_count": runner.block_count,
            "block_size": 4,
            "max_model_len": 512,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 256,
        }
        self.engine = Engine(runner, self.arena, **(limits | changes))
        self.front = EngineFront(folder, self.arena, self.engine.receive)

    def run(self, sequence_ids: list[int]) -> list[list[int]]:
        """Steps until the sequences have ended, and returns their tokens."""
        for _ in range(2000):
            self.front.take(self.engine.take_messages())
            if self.front.ended.issuperset(sequence_ids):
                self.engine.check_integrity()
                return [self.front.token_ids(sequence_id) for sequence_id in sequence_ids]
            self.engine.step()
        raise AssertionError("the sequences did not end")

    @property
    def status(self) -> EngineStatus:
        return self.engine.status()


class Case:
    """One checkpoint, its reference answers and its runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = ReferenceModel(self.folder)
        self.runner = load_runner(settings_for(self.folder), lambda fraction, text: None)
        self._answers: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def prompt(self, text: str, pictures: tuple[int, ...]) -> list[int]:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": text}]
        return self.reference.chat([{"role": "user", "content": content}])

    def expected(self, text: str, pictures: tuple[int, ...]) -> list[int]:
        key = (text, pictures)
        if key not in self._answers:
            drawn = [draw_picture(seed) for seed in pictures]
            # The end token is no end here: every answer is 16 tokens long.
            self._answers[key] = self.reference.generate(
                self.prompt(text, pictures), drawn, 16, eos_token_id=None
            )
        return self._answers[key]

    def engine(self, **changes: object) -> LocalEngine:
        local = LocalEngine(self.folder, self.runner, **changes)
        for seed in range(4):
            local.front.encode(f"{seed:064x}", draw_picture(seed))
        return local

    def add(self, local: LocalEngine, text: str, pictures: tuple[int, ...]) -> int:
        return local.front.add(self.prompt(text, pictures), [f"{seed:064x}" for seed in pictures])
