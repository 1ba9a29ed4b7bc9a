"""A batch becomes flat tensors: order, positions, slots, tables."""

from __future__ import annotations

import numpy as np
import torch

from llm_service.engine.batch import ScheduledBatch, ScheduledSequence
from llm_service.engine.messages import AddSequence, SamplingSettings, StoppingSettings
from llm_service.engine.sequence import Sequence
from llm_service.runner.inputs import InputBuffers, StepInputs

BLOCK_SIZE = 4


def make(prompt_length: int, output: list[int], table: list[int]) -> Sequence:
    """Prompt tokens 100, 101, ...; three axes 0.., 1000.., 2000..; the answer begins at position 50."""
    positions = np.arange(prompt_length) + np.array([[0], [1000], [2000]])
    sequence = Sequence(
        AddSequence(
            sequence_id=table[0],
            token_ids=np.arange(100, 100 + prompt_length, dtype="<i4").tobytes(),
            positions=positions.astype("<i4").tobytes(),
            axes=3,
            next_position=50,
            spans=[],
            sampling=SamplingSettings(),
            stopping=StoppingSettings(max_token_count=100),
            arrival=0.0,
        )
    )
    sequence.token_ids.extend(output)
    sequence.block_table.extend(table)
    return sequence


def fill(*items: ScheduledSequence) -> StepInputs:
    buffers = InputBuffers(
        max_tokens=64,
        max_sequences=8,
        max_blocks=8,
        block_size=BLOCK_SIZE,
        axes=3,
        device=torch.device("cpu"),
    )
    # A step before leaves its numbers in the buffers.
    stale = make(40, [], [9, 9, 9, 9, 9, 9, 9, 9])
    buffers.fill(ScheduledBatch([ScheduledSequence(stale, 0, 30, True)] * 2))
    return buffers.fill(ScheduledBatch(list(items)))


def test_decoding_sequences_come_first_longest_at_the_front() -> None:
    chunk = ScheduledSequence(make(10, [], [3, 4, 5]), 2, 3, False)
    short = ScheduledSequence(make(2, [7], [6]), 2, 1, True)
    long = ScheduledSequence(make(5, [7, 8, 9], [1, 2]), 7, 1, True)
    step = fill(chunk, short, long)
    assert step.items == [long, short, chunk]
    assert step.rows == [0, 1, 2]
    assert step.shape.decode_count == 2
    assert step.token_ids.tolist() == [9, 7, 102, 103, 104]
    assert step.sampled.tolist() == [0, 1]
    assert step.shape.query_starts.tolist() == [0, 1, 2, 5]
    assert step.shape.lengths.tolist() == [8, 3, 5]


def test_slots_follow_the_block_table() -> None:
    step = fill(ScheduledSequence(make(10, [], [3, 0, 5]), 2, 7, False))
    assert step.shape.slots.tolist() == [14, 15, 0, 1, 2, 3, 20]


def test_tables_are_padded_with_their_own_first_block() -> None:
    long = ScheduledSequence(make(9, [1], [3, 4, 5]), 9, 1, True)
    short = ScheduledSequence(make(2, [7], [6, 2]), 2, 1, True)
    assert fill(long, short).shape.block_tables.tolist() == [[3, 4, 5], [6, 6, 6]]


def test_positions_go_on_from_the_prompt_on_every_axis() -> None:
    sequence = make(6, [1, 2, 3], [3, 4, 5])
    across = fill(ScheduledSequence(sequence, 4, 5, True))
    assert across.positions.tolist() == [
        [4, 5, 50, 51, 52],
        [1004, 1005, 50, 51, 52],
        [2004, 2005, 50, 51, 52],
    ]
    assert fill(ScheduledSequence(sequence, 8, 1, True)).positions.tolist() == [[52]] * 3
    assert fill(ScheduledSequence(sequence, 5, 1, False)).positions.tolist() == [[5], [1005], [2005]]


def test_fresh_blocks_are_those_begun_and_not_filled() -> None:
    assert fill(ScheduledSequence(make(10, [], [3, 4, 5]), 0, 8, False)).fresh_blocks.tolist() == []
    assert fill(ScheduledSequence(make(10, [], [3, 4, 5]), 0, 9, False)).fresh_blocks.tolist() == [5]
    assert fill(ScheduledSequence(make(10, [], [3, 4, 5]), 2, 1, False)).fresh_blocks.tolist() == []
    assert fill(ScheduledSequence(make(10, [], [3, 4, 5]), 4, 1, False)).fresh_blocks.tolist() == [4]
    assert fill(ScheduledSequence(make(10, [], [3, 4, 5]), 6, 1, False)).fresh_blocks.tolist() == []
