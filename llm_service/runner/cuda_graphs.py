"""Steps that only decode, recorded once per batch size as CUDA graphs and replayed.

A replay is one launch, whatever the model's layers are: the host neither
launches kernels one by one nor waits for the device until the tokens are there.
Knows sizes, recording and replaying. Does not know how rows are scheduled, nor
how tokens other than the likeliest are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from llm_service.engine.batch import ScheduledSequence
from llm_service.runner.attention.context import AttentionBackend, AttentionContext
from llm_service.runner.attention.registration import CONTEXT_KEYWORD
from llm_service.runner.decode_rows import DecodeRows, padded_size, padded_sizes
from llm_service.runner.kv_cache import KvCache
from llm_service.runner.sampling.sampler import greedy_ids
from llm_service.runner.static_buffer import Fence
from shared.families.base import LanguageModel

CAPTURABLE = ("flash_attn", "triton")
"""Backends whose kernels read lengths on the device and are launched alike whatever these are."""

WARM_UP_RUNS = 2
"""Runs before a recording: kernels are compiled and libraries set up, which cannot be recorded."""

OTHER_GRAPH_BYTES = 16 << 20
"""Device memory that the driver takes for a recording beside the memory that all share."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What a replay has left on the device, valid until the next.

    Attributes:
        ids: int64 (size,), the likeliest token of each row, -1 where no logit is finite.
        logits: float32 (size, vocabulary).
    """

    ids: torch.Tensor
    logits: torch.Tensor


def can_capture(device: torch.device, backend: AttentionBackend) -> bool:
    """Whether decoding steps of this backend can be recorded on this device."""
    return device.type == "cuda" and backend.name in CAPTURABLE


class DecodeBody:
    """The part of a decoding step that is recorded: from rows on the device to tokens on the device.

    It reads no value on the host, so it can be recorded; run directly it does the same.
    """

    def __init__(
        self, model: LanguageModel, cache: KvCache, backend: AttentionBackend, rows: DecodeRows, capacity: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._backend = backend
        self._rows = rows
        device = cache.keys[0].device
        self.ids = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.logits = torch.zeros((capacity, model.vocabulary_size), dtype=torch.float32, device=device)

    def run(self, size: int) -> DecodeStep:
        """Computes one step of `size` rows into `ids` and `logits`."""
        shape = self._rows.shape(size)
        context = AttentionContext(self._cache, shape.slots, self._backend.plan(self._cache, shape))
        embeds = self._model.embed(self._rows.token_ids(size))
        hidden = self._model.forward(embeds, self._rows.positions(size), **{CONTEXT_KEYWORD: context})
        step = self.result(size)
        step.logits.copy_(self._model.logits(hidden))
        step.ids.copy_(greedy_ids(step.logits))
        return step

    def result(self, size: int) -> DecodeStep:
        """The first `size` rows of what the last run left."""
        return DecodeStep(self.ids[:size], self.logits[:size])


class DecodeGraphs:
    """Recordings of a `DecodeBody`, one per padded size.

    Attributes:
        sizes: the batch sizes that there are, rising.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: KvCache,
        backend: AttentionBackend,
        *,
        max_sequences: int,
        max_blocks: int,
        axes: int,
    ) -> None:
        assert cache.scratch_block is not None, "rows that fill a batch up need a block of their own"
        self._device = cache.keys[0].device
        self.sizes = padded_sizes(max_sequences)
        self._rows = DecodeRows(
            max_sequences, max_blocks, cache.block_size, cache.scratch_block, axes, self._device
        )
        self._body = DecodeBody(model, cache, backend, self._rows, max_sequences)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._host_ids = torch.zeros(max_sequences, dtype=torch.int64, pin_memory=True)
        self._copied = Fence(self._device)

    def capture(self, progress: Callable[[float], None], most: int | None = None) -> None:
        """Records all sizes, the largest first, so that the others fit into its memory.

        Args:
            progress: takes the fraction of sizes that are recorded.
            most: how many sizes to record; all by default.
        """
        pool = torch.cuda.graph_pool_handle()
        sizes = self.sizes[::-1][:most]
        for index, size in enumerate(sizes):
            progress(index / len(sizes))
            self._warm_up(size)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._body.run(size)
            self._graphs[size] = graph
        torch.cuda.synchronize(self._device)
        progress(1.0)

    def replay(self, items: Items[ScheduledSequence]) -> DecodeStep:
        """Runs a step; returns the rows of `items`, in their order, while the device still computes."""
        size = padded_size(len(items), self.sizes)
        self._rows.fill(items, size)
        self._graphs[size].replay()
        return self._body.result(len(items))

    def read_ids(self, step: DecodeStep) -> list[int]:
        """The tokens of a replay: the one place where the host waits for the device."""
        count = len(step.ids)
        self._host_ids[:count].copy_(step.ids, non_blocking=True)
        self._copied.record()
        self._copied.wait()
        ids: list[int] = self._host_ids[:count].tolist()
        return ids

    def _warm_up(self, size: int) -> None:
        """Runs on a side stream, as a recording's warm-up must."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._body.run(size)
        torch.cuda.current_stream(self._device).wait_stream(side)
