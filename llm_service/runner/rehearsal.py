"""Steps on made-up sequences: warm a runner up, and show the memory of its largest step.

Knows how to make a sequence that no request sent. Does not know what the
outcome is for.
"""

from __future__ import annotations

import numpy as np

from llm_service.engine.batch import Runner, ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import (
    AddSequence,
    ArenaTensor,
    EngineSettings,
    SamplingSettings,
    StoppingSettings,
)
from llm_service.engine.sequence import Sequence


class NoRows:
    """The row source of sequences without media."""

    def tensors(self, key: str) -> list[ArenaTensor]:
        raise AssertionError(f"a rehearsal has no media, but {key} was asked for")

    def rows(self, key: str, tensor_name: str, first: int, count: int) -> memoryview:
        raise AssertionError(f"a rehearsal has no media, but {key} was asked for")


def run_smallest(runner: Runner, settings: EngineSettings, axes: int) -> None:
    """Runs a chunk and a decoding step in block 0, before the engine hands any block out."""
    length = max(1, min(settings.block_size - 1, settings.max_num_batched_tokens))
    sequence = _made_up(0, length, axes, settings.block_size)
    runner.run(ScheduledBatch([ScheduledSequence(sequence, 0, length, True)]), NoRows())
    if length < settings.block_size:
        sequence.token_ids.append(0)
        runner.run(ScheduledBatch([ScheduledSequence(sequence, length, 1, True)]), NoRows())
    runner.forget(sequence.sequence_id)


def run_largest(runner: Runner, settings: EngineSettings, axes: int, variant: str = "") -> None:
    """Runs as many tokens and as many sequences as a step may have, all in the same blocks."""
    count = min(settings.max_num_seqs, settings.max_num_batched_tokens)
    length = settings.max_num_batched_tokens // count
    sequences = [_made_up(index, length, axes, settings.block_size, variant) for index in range(count)]
    items = [ScheduledSequence(sequence, 0, length, True) for sequence in sequences]
    runner.run(ScheduledBatch(items), NoRows())
    for sequence in sequences:
        runner.forget(sequence.sequence_id)


def largest_block_count(settings: EngineSettings) -> int:
    """Blocks that `run_largest` touches at most."""
    return -(-settings.max_num_batched_tokens // settings.block_size)


def _made_up(index: int, length: int, axes: int, block_size: int, variant: str = "") -> Sequence:
    """A prompt of token 0 in blocks 0 and on."""
    positions = np.broadcast_to(np.arange(length, dtype="<i4"), (axes, length))
    message = AddSequence(
        sequence_id=-1 - index,
        token_ids=np.zeros(length, dtype="<i4").tobytes(),
        positions=positions.tobytes(),
        axes=axes,
        next_position=length,
        spans=[],
        sampling=SamplingSettings(),
        stopping=StoppingSettings(max_token_count=1),
        arrival=0.0,
        variant=variant,
    )
    sequence = Sequence(message)
    sequence.block_table.extend(range(-(-length // block_size)))
    return sequence
