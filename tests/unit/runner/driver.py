"""Drives a runner step by step, as the tests want it: no scheduler, blocks in random order."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llm_service.engine.batch import SampledToken, ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    EngineSettings,
    SamplingSettings,
    SpanMessage,
    StoppingSettings,
)
from llm_service.engine.sequence import Sequence
from llm_service.runner.load import load_runner
from llm_service.runner.model_runner import ModelRunner
from shared.checkpoint import find_checkpoint
from shared.families import load_family
from shared.families.base import EncodedItem
from shared.torch_tensors import to_raw

GREEDY = SamplingSettings()
BLOCK_SIZE = 4


class StoredRows:
    """A row source in memory."""

    def __init__(self) -> None:
        self.items: dict[str, EncodedItem] = {}

    def tensors(self, key: str) -> list[ArenaTensor]:
        return [
            ArenaTensor(name, raw.data_type, (raw.shape[0], raw.shape[1]), 0)  # type: ignore[arg-type]
            for name, raw in self.items[key].tensors.items()
        ]

    def rows(self, key: str, tensor_name: str, first: int, count: int) -> memoryview:
        raw = self.items[key].tensors[tensor_name]
        size = len(raw.data) // raw.shape[0]
        return memoryview(raw.data)[first * size : (first + count) * size].toreadonly()


@dataclass
class Checkpoint:
    """The parts of one checkpoint that the tests share."""

    folder: Path

    def __post_init__(self) -> None:
        self.family = load_family(find_checkpoint(str(self.folder)))
        self.layout = self.family.prompt_layout()

    def encode(self, picture: Image.Image) -> EncodedItem:
        """A picture's rows from Percept's own tower."""
        features = self.family.preprocessor().preprocess_image(picture, {})
        tower = self.family.tower(torch.device("cpu"), torch.float32)
        (tensors,) = tower.encode([features])
        return EncodedItem(features.info, {name: to_raw(tensor) for name, tensor in tensors.items()})


def settings_for(folder: Path, **changes: object) -> EngineSettings:
    """Small limits, blocks of four slots."""
    values: dict[str, object] = {
        "model": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 1024,
        "block_size": BLOCK_SIZE,
        "kv_cache_gib": 0.02,
    }
    return EngineSettings(**(values | changes))  # type: ignore[arg-type]


class Driver:
    """Owns a runner, gives blocks out and appends what it samples."""

    def __init__(self, checkpoint: Checkpoint, **changes: object) -> None:
        self.settings = settings_for(checkpoint.folder, **changes)
        self.runner: ModelRunner = load_runner(self.settings, lambda fraction, text: None)
        self.checkpoint = checkpoint
        self.rows = StoredRows()
        self.free = list(range(self.runner.block_count))
        random.Random(7).shuffle(self.free)
        self.count = 0

    def add(
        self,
        token_ids: Items[int],
        keys: Items[str] = (),
        sampling: SamplingSettings = GREEDY,
        stopping: StoppingSettings | None = None,
    ) -> Sequence:
        """A sequence of a prompt with one placeholder for each key, whose rows are stored."""
        prompt = self.checkpoint.layout.expand(token_ids, [self.rows.items[key].info for key in keys])
        self.count += 1
        return Sequence(
            AddSequence(
                sequence_id=self.count,
                token_ids=np.asarray(prompt.token_ids, dtype="<i4").tobytes(),
                positions=prompt.positions.astype("<i4").tobytes(),
                axes=prompt.positions.shape[0],
                next_position=prompt.next_position,
                spans=[
                    SpanMessage(keys[span.item], span.start, span.length, span.splittable, span.first_row)
                    for span in prompt.spans
                ],
                sampling=sampling,
                stopping=stopping or StoppingSettings(max_token_count=1000),
                arrival=float(self.count),
                variant=prompt.variant,
            ),
            self.runner.switch_length,
        )

    def step(self, parts: Items[tuple[Sequence, int]]) -> list[SampledToken]:
        """Computes so many more tokens of each sequence, at most all that are known."""
        items = [self._schedule(sequence, count) for sequence, count in parts]
        tokens = self.runner.run(ScheduledBatch(items), self.rows)
        by_id = {item.sequence.sequence_id: item.sequence for item in items}
        for item in items:
            item.sequence.computed_count += item.count
        for token in tokens:
            if token.failure is None:
                sequence = by_id[token.sequence_id]
                sequence.token_ids.append(token.token_id)
                if sequence.must_switch:
                    sequence.switch()
        return tokens

    def generate(self, sequences: Items[Sequence], count: int, chunk: int = 1000) -> list[list[int]]:
        """Steps of at most `chunk` tokens for each sequence until every one has so many new tokens."""
        while any(sequence.output_count < count for sequence in sequences):
            unfinished = [sequence for sequence in sequences if sequence.output_count < count]
            self.step([(sequence, chunk) for sequence in unfinished])
        return [sequence.token_ids[sequence.prompt_length :] for sequence in sequences]

    def _schedule(self, sequence: Sequence, count: int) -> ScheduledSequence:
        start = sequence.computed_count
        count = min(count, len(sequence.token_ids) - start)
        while len(sequence.block_table) * BLOCK_SIZE < start + count:
            sequence.block_table.append(self.free.pop())
        return ScheduledSequence(sequence, start, count, start + count == len(sequence.token_ids))
