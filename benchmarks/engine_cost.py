"""`python -m benchmarks.engine_cost`: what the engine itself takes of a step, beside the model.

Many sequences decode on a runner that computes nothing. What is left of a step is
deciding, booking and writing the report to the front; the model's share, and what
the front does with a report, are not in it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from benchmarks.summary import report_arguments, spread, write_report
from llm_service.engine.batch import RowSource, SampledToken, ScheduledBatch
from llm_service.engine.engine import Engine
from llm_service.engine.frames import encode_frame
from llm_service.engine.messages import AddSequence, SamplingSettings, StepReport, StoppingSettings, ToFront
from llm_service.engine.sequence import Sequence
from shared.embedding_arena import EmbeddingArena

SEQUENCE_COUNT = 256
BLOCK_SIZE = 16
TOKEN_ID = 7
WARM_UP_STEPS = 20


class IdleRunner:
    """Says the same token for every sequence, and computes nothing."""

    def run(self, batch: ScheduledBatch, rows: RowSource) -> list[SampledToken]:
        """See `Runner`."""
        return [SampledToken(item.sequence.sequence_id, TOKEN_ID) for item in batch.items if item.samples]

    def token_seconds(self, sequence: Sequence) -> list[float]:
        """See `Runner`."""
        raise AssertionError("nobody asks for times here")

    def forget(self, sequence_id: int) -> None:
        """See `Runner`."""


def measure(
    *, sequence_count: int = SEQUENCE_COUNT, prompt_tokens: int = 1000, repeats: int = 200
) -> dict[str, Any]:
    """Returns microseconds of a step in which every sequence decodes.

    Args:
        sequence_count: sequences at a time.
        prompt_tokens: of each prompt, no two of which share a block.
        repeats: steps that count.
    """
    most = prompt_tokens + WARM_UP_STEPS + repeats + 2
    arena = EmbeddingArena.create(1)
    engine = Engine(
        IdleRunner(),
        arena,
        block_count=sequence_count * (most // BLOCK_SIZE + 1),
        block_size=BLOCK_SIZE,
        max_model_len=most + 1,
        max_num_seqs=sequence_count,
        # All prompts in the first step, so that all begin to decode with the second.
        max_num_batched_tokens=sequence_count * prompt_tokens,
    )
    for index in range(sequence_count):
        engine.receive(_message(index, prompt_tokens, most))
    _step(engine)
    seconds = [_timed_step(engine, sequence_count) for _ in range(WARM_UP_STEPS + repeats)]
    arena.close()
    print(f"engine_cost: {repeats} of {repeats}", flush=True)
    return {
        "step_us": spread([1e6 * each for each in seconds[WARM_UP_STEPS:]], 1),
        "sequences": sequence_count,
        "prompt_tokens": prompt_tokens,
    }


def _timed_step(engine: Engine, sequence_count: int) -> float:
    """Seconds from the step's begin until its report could be sent."""
    begin = time.perf_counter()
    messages = _step(engine)
    seconds = time.perf_counter() - begin
    tokens = sum(len(message.tokens) for message in messages if isinstance(message, StepReport))
    assert tokens == sequence_count, f"a step gave {tokens} tokens"
    return seconds


def _step(engine: Engine) -> list[ToFront]:
    engine.step()
    messages = engine.take_messages()
    b"".join(encode_frame(message) for message in messages)
    return messages


def _message(index: int, prompt_tokens: int, most: int) -> AddSequence:
    token_ids = np.full(prompt_tokens, TOKEN_ID, dtype="<i4")
    token_ids[0] = index
    return AddSequence(
        sequence_id=index,
        token_ids=token_ids.tobytes(),
        positions=np.arange(prompt_tokens, dtype="<i4").tobytes(),
        axes=1,
        next_position=prompt_tokens,
        spans=[],
        sampling=SamplingSettings(),
        stopping=StoppingSettings(max_token_count=most),
        arrival=float(index),
    )


def main() -> int:
    """Measures and prints; always 0."""
    parser = report_arguments("engine_cost", __doc__)
    parser.add_argument("--sequences", type=int, default=SEQUENCE_COUNT)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=200)
    chosen = parser.parse_args()
    figures = measure(
        sequence_count=chosen.sequences, prompt_tokens=chosen.prompt_tokens, repeats=chosen.repeats
    )
    write_report(figures, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
