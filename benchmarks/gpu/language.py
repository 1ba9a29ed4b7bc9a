"""The language model alone: decoding steps, throughput of a batch, a long prompt.

Knows how to drive a runner and an engine without a front. Does not know pictures.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.clock import free_memory, median_seconds
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.models import fused, random_decoder, random_runner
from benchmarks.gpu.sizes import ModelSizes, Scale
from llm_service.engine.batch import ScheduledBatch, ScheduledSequence
from llm_service.engine.engine import Engine
from llm_service.engine.messages import (
    AddSequence,
    SamplingSettings,
    SequenceFailed,
    StepReport,
    StoppingSettings,
)
from llm_service.engine.sequence import Sequence
from llm_service.runner.model_runner import ModelRunner
from llm_service.runner.rehearsal import NoRows
from shared.embedding_arena import EmbeddingArena

BLOCK_SIZE = 16


def message_of(index: int, token_ids: list[int], answer: int) -> AddSequence:
    """A greedy request of text that only its length ends."""
    count = len(token_ids)
    positions = np.broadcast_to(np.arange(count, dtype="<i4"), (3, count))
    return AddSequence(
        sequence_id=index,
        token_ids=np.asarray(token_ids, dtype="<i4").tobytes(),
        positions=positions.tobytes(),
        axes=3,
        next_position=count,
        spans=[],
        sampling=SamplingSettings(),
        stopping=StoppingSettings(max_token_count=answer),
        arrival=float(index),
    )


def prompts(scale: Scale, vocabulary: int, length: int) -> list[list[int]]:
    """Random tokens, different for each sequence of the batch."""
    generator = np.random.default_rng(5)
    ids: list[list[int]] = generator.integers(10, min(vocabulary, 100_000), (scale.batch, length)).tolist()
    return ids


def measure_decoding(sizes: ModelSizes, scale: Scale, limits: Limits) -> dict[str, Any]:
    """Milliseconds of a decoding step of one sequence, recorded and eager, over the floor."""
    device = torch.device(scale.device)
    decoder, module = random_decoder(sizes, device)
    weights = sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())
    if not sizes.tied:
        # One row of the input embedding is read, not the table.
        weights -= module.model.embed_tokens.weight.numel() * 2  # type: ignore[operator,union-attr]
    floor = weights / limits.copy_bytes_per_s
    found: dict[str, Any] = {"model": sizes.name, "weight_bytes": weights, "floor_ms": floor * 1e3}
    model = fused(decoder, device)
    for name, eager in (("step_ms", False), ("eager_step_ms", True)):
        runner = _runner(model, scale, device, batch=1, enforce_eager=eager)
        found[name] = 1e3 * _step_seconds(runner, scale)
        del runner
        free_memory(device)
    found["ratio"] = found["step_ms"] / found["floor_ms"]
    found["eager_ratio"] = found["eager_step_ms"] / found["floor_ms"]
    return found


def _runner(decoder: Any, scale: Scale, device: torch.device, batch: int, **changes: Any) -> ModelRunner:
    longest = max(scale.context + scale.steps + 8, scale.prompt + scale.answer)
    blocks = batch * (longest // BLOCK_SIZE + 1)
    chunk = max(scale.context, scale.prompt * batch)
    runner, _ = random_runner(
        decoder, device, blocks, max_num_seqs=batch, max_num_batched_tokens=chunk, max_model_len=longest,
        block_size=BLOCK_SIZE, **changes,
    )  # fmt: skip
    return runner


def _step_seconds(runner: ModelRunner, scale: Scale) -> float:
    """Median wall seconds of a step that decodes one sequence, from the runner's call to its token."""
    sequence = Sequence(message_of(1, prompts(scale, 1000, scale.context)[0], scale.steps + 8))
    sequence.block_table.extend(range(runner.block_count))
    times = []
    start, count = 0, scale.context
    for _ in range(scale.steps + 5):
        begin = time.perf_counter()
        (token,) = runner.run(ScheduledBatch([ScheduledSequence(sequence, start, count, True)]), NoRows())
        times.append(time.perf_counter() - begin)
        start, count = len(sequence.token_ids), 1
        sequence.token_ids.append(token.token_id)
    return statistics.median(times[5:])


def measure_prefill(sizes: ModelSizes, scale: Scale, limits: Limits) -> dict[str, Any]:
    """One step of a long prompt: its operations per second as a share of the product's rate."""
    device = torch.device(scale.device)
    decoder, module = random_decoder(sizes, device)
    length = scale.prefill
    operations = prefill_operations(sizes, module, length)
    runner, _ = random_runner(
        fused(decoder, device), device, length // BLOCK_SIZE + 1, max_num_seqs=1,
        max_num_batched_tokens=length, max_model_len=length, block_size=BLOCK_SIZE, enforce_eager=True,
    )  # fmt: skip
    sequence = Sequence(message_of(1, prompts(scale, 1000, length)[0], 1))
    sequence.block_table.extend(range(runner.block_count))
    batch = ScheduledBatch([ScheduledSequence(sequence, 0, length, True)])
    took = median_seconds(lambda: runner.run(batch, NoRows()), device, scale.repeats)
    rate = operations / took
    return {
        "model": sizes.name,
        "tokens": length,
        "ms": took * 1e3,
        "operations": operations,
        "share": rate / limits.operations_per_s,
    }


def prefill_operations(sizes: ModelSizes, module: torch.nn.Module, length: int) -> float:
    """Products of all layers and the causal half of attention; one token of the output layer."""
    text = sizes.text
    layers = sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and ".layers." in name
    )
    head = text["hidden_size"] * text["vocab_size"]
    attention: int = 2 * text["num_hidden_layers"] * text["hidden_size"] * length**2
    return 2.0 * layers * length + 2.0 * int(head) + attention


def engine_throughput(runner: ModelRunner, scale: Scale, vocabulary: int) -> tuple[float, list[list[int]]]:
    """Output tokens per second of a whole batch, from the first prompt to the last token; and the tokens."""
    arena = EmbeddingArena.create(1 << 16)
    engine = Engine(
        runner, arena, block_count=runner.block_count, block_size=BLOCK_SIZE, max_model_len=32768,
        max_num_seqs=scale.batch, max_num_batched_tokens=scale.prompt * scale.batch,
        enable_prefix_caching=False,
    )  # fmt: skip
    begin = time.perf_counter()
    for index, prompt in enumerate(prompts(scale, vocabulary, scale.prompt)):
        engine.receive(message_of(index, prompt, scale.answer))
    answers: list[list[int]] = [[] for _ in range(scale.batch)]
    while engine.step():
        for message in engine.take_messages():
            assert not isinstance(message, SequenceFailed), message
            if isinstance(message, StepReport):
                for report in message.tokens:
                    answers[report.sequence_id].append(report.token_id)
    took = time.perf_counter() - begin
    arena.close()
    assert all(len(answer) == scale.answer for answer in answers), "an answer ended early"
    return scale.batch * scale.answer / took, answers
