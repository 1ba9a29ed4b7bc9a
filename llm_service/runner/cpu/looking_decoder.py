"""A language model whose text looks at items, its steps as two programs of our kernels.

The first computes keys and values of a step's rows of items, on all layers, and puts them into the
cache; the second runs the layers on the step's text. Knows the order of operations and where a
step's tensors lie. Does not know how sequences are scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from llm_service.runner.attention.context import AttentionContext
from llm_service.runner.attention.registration import CONTEXT_KEYWORD
from llm_service.runner.cpu.looking_weights import LookingLayer, LookingWeights
from llm_service.runner.kv_cache import KvCache
from shared.families.alignment import Alignment
from shared.families.base import KvLayout, StateShape
from shared.families.looking import StepSequence
from shared.families.looking_attention import rows_of, text_count
from shared.kernels.blocks import Linear, Norm
from shared.kernels.library import Team
from shared.kernels.operation import AttentionPlan, Operation
from shared.kernels.program import Count, Heads, Program

OPERATIONS_PER_LAYER = 12


class CpuLookingDecoder:
    """See `LooksAtItems`; takes any mixture of items' rows, chunks and decoding sequences in one run."""

    looks_at_items = True
    extra_widths: Mapping[str, int] = MappingProxyType({})
    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(
        self,
        weights: LookingWeights,
        layout: KvLayout,
        item_multiple: int,
        team: Team,
        max_tokens: int,
        alignment: Alignment | None = None,
    ) -> None:
        """Takes the step's memory.

        Args:
            item_multiple: see `LooksAtItems`.
            max_tokens: most tokens of a step.
            alignment: see `TellsTimes`.
        """
        self.alignment = alignment
        self._weights = weights
        self._team = team
        self._dtype = weights.positions.dtype
        self._max_tokens = max_tokens
        self.item_multiple = item_multiple
        self.hidden_size = weights.hidden_size
        self.vocabulary_size = weights.head.columns
        self.kv_layout = layout
        self._step: _Step | None = None

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden); the token of rows lies behind the vocabulary."""
        known = token_ids.clamp(0, self.vocabulary_size - 1).contiguous()
        if self._weights.embedding is not None:
            return self._weights.embedding[known]
        rows = torch.empty(len(known), self.hidden_size, dtype=self._dtype)
        program = Program(self._team, self._dtype, 1)
        program.unpack(Count(len(known)), self._weights.head, rows).index = known.data_ptr()
        program.run()
        return rows

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        sequences: tuple[StepSequence, ...] = (),
        **attention: Any,
    ) -> torch.Tensor:
        """See `LooksAtItems`. The result is overwritten by the next call."""
        context = attention[CONTEXT_KEYWORD]
        assert isinstance(context, AttentionContext), "a step without its context"
        assert context.shape is not None, "a step without its shape"
        assert sum(sequence.count for sequence in sequences) == len(inputs_embeds), "rows of nobody"
        if self._step is None or self._step.cache is not context.cache:
            apart = () if self.alignment is None else self.alignment.layers
            self._step = _Step(self._weights, context.cache, self._team, self._max_tokens, apart)
        text, seen = rows_of(sequences, inputs_embeds.device)
        if len(seen):
            self._step.fill(inputs_embeds[seen], context.slots[seen])
        if not len(text):
            return inputs_embeds
        embeds = inputs_embeds[text] + self._weights.positions[positions[0, text]]
        hidden = self._step.run(embeds, context, text, sequences)
        if len(text) == len(inputs_embeds):
            return hidden
        spread = torch.zeros_like(inputs_embeds)
        spread[text] = hidden
        return spread

    def looking_queries(self, layer: int) -> torch.Tensor:
        """See `TellsTimes`."""
        assert self._step is not None, "no step has run"
        return self._step.queries(layer)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        output = torch.empty(len(hidden), self.vocabulary_size, dtype=torch.float32)
        program = Program(self._team, self._dtype, 1)
        program.linear(Count(len(hidden)), hidden.contiguous(), self._weights.head, output)
        program.run()
        return output


class _Step:
    """Both programs over one cache, and the memory of a step.

    Attributes:
        cache: whose slots the programs write and read.
    """

    def __init__(
        self, weights: LookingWeights, cache: KvCache, team: Team, max_tokens: int, apart: Sequence[int]
    ) -> None:
        """Args:
        apart: layers whose queries across can be read after a run.
        """
        self.cache = cache
        self._weights = weights
        self._rows, self._sequences, self._seen_rows = Count(), Count(), Count()
        layer_count, heads = len(weights.layers), weights.heads
        width, most = weights.hidden_size, max_tokens

        def buffer(columns: int) -> torch.Tensor:
            return torch.zeros(most, columns, dtype=weights.positions.dtype)

        self._hidden, self._normed, self._attended = buffer(width), buffer(width), buffer(width)
        self._states, self._fed = buffer(3 * width), buffer(weights.layers[0].narrow.weight.depth)
        self._query, self._seen, self._seen_states = buffer(width), buffer(width), buffer(2 * width)
        self._apart = {layer: buffer(width) for layer in apart}
        # Nothing is rotated: the operation serves to copy rows into slots.
        self._ones = torch.ones(most, heads.width // 2)
        self._zeros = torch.zeros_like(self._ones)
        self._copies: list[Operation] = []
        self._seen_copies: list[Operation] = []
        self._among: list[AttentionPlan] = []
        self._across: list[AttentionPlan] = []
        self._kept: list[object] = []
        self._filling = Program(team, weights.positions.dtype, 2 * layer_count)
        self._program = Program(team, weights.positions.dtype, OPERATIONS_PER_LAYER * layer_count + 1)
        for index, layer in enumerate(weights.layers):
            self._add_filling(index, layer)
            self._add_layer(index, layer)
        self._norm(self._hidden, weights.norm, self._normed)

    def fill(self, rows: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts keys and values of (n, hidden) rows of items into their int64 (n,) slots, on all layers."""
        self._seen_rows.value = len(rows)
        self._seen[: len(rows)].copy_(rows)
        slots = slots.contiguous()
        for copy in self._seen_copies:
            copy.slots = slots.data_ptr()
        self._filling.run()

    def run(
        self,
        embeds: torch.Tensor,
        context: AttentionContext,
        text: torch.Tensor,
        sequences: Sequence[StepSequence],
    ) -> torch.Tensor:
        """Runs (n, hidden) text through all layers and the last norm; overwritten by the next run."""
        count = len(embeds)
        self._rows.value = count
        self._hidden[:count].copy_(embeds)
        self._bind(context, text, sequences)
        self._program.run()
        return self._normed[:count]

    def queries(self, layer: int) -> torch.Tensor:
        """(text, heads, head_dim) of the last run, scaled."""
        heads = self._weights.heads
        rows = self._apart[layer][: self._rows.value]
        scale: float = heads.width**-0.5
        return rows.view(-1, heads.query, heads.width) * scale

    def _bind(self, context: AttentionContext, text: torch.Tensor, sequences: Sequence[StepSequence]) -> None:
        """Points the program at the slots, tables and lengths of a step's text."""
        assert context.shape is not None, "a step without its shape"
        slots = context.slots[text].contiguous()
        indices = [index for index, sequence in enumerate(sequences) if text_count(sequence)]
        speaking = [sequences[index] for index in indices]
        self._sequences.value = len(speaking)
        starts = np.zeros(len(speaking) + 1, np.int32)
        np.cumsum([text_count(sequence) for sequence in speaking], out=starts[1:])
        ends = [sequence.start + sequence.count for sequence in speaking]
        said = np.array([end - one.ahead for end, one in zip(ends, speaking, strict=True)], np.int32)
        seen = np.array([sequence.filled for sequence in speaking], np.int32)
        tables = context.shape.block_tables[indices].contiguous().numpy()
        own, size = self._text_tables(tables, speaking, ends)
        self._kept = [slots, starts, said, seen, tables, own]
        for copy in self._copies:
            copy.slots = slots.data_ptr()
        for plan in self._among:
            plan.starts, plan.lengths, plan.tables = (part.ctypes.data for part in (starts, said, own))
            plan.table_stride, plan.block_size = own.shape[1], size
        for plan in self._across:
            plan.starts, plan.lengths, plan.tables = (part.ctypes.data for part in (starts, seen, tables))
            plan.table_stride = tables.shape[1]

    def _text_tables(
        self, tables: Any, sequences: Sequence[StepSequence], ends: Sequence[int]
    ) -> tuple[Any, int]:
        """Where each sequence's text lies, int64 (sequences, widest), and slots in an entry.

        By blocks where all texts begin with one, else slot by slot.
        """
        size = self.cache.block_size
        if all(sequence.ahead % size == 0 for sequence in sequences):
            parts = [
                table[sequence.ahead // size : -(-end // size)]
                for table, sequence, end in zip(tables, sequences, ends, strict=True)
            ]
        else:
            parts = []
            for table, sequence, end in zip(tables, sequences, ends, strict=True):
                places = np.arange(sequence.ahead, end)
                parts.append(table[places // size] * size + places % size)
            size = 1
        own = np.zeros((len(parts), max(map(len, parts))), np.int64)
        for row, part in zip(own, parts, strict=True):
            row[: len(part)] = part
        return own, size

    def _add_filling(self, index: int, layer: LookingLayer) -> None:
        self._filling.linear(
            self._seen_rows, self._seen, layer.seen.weight, self._seen_states, bias=layer.seen.bias
        )
        heads = Heads(0, self._weights.heads.key, self._weights.heads.width)
        self._seen_copies.append(self._copy(self._filling, self._seen_rows, index, self._seen_states, heads))

    def _add_layer(self, index: int, layer: LookingLayer) -> None:
        program, rows = self._program, self._rows
        self._norm(self._hidden, layer.text_norm, self._normed)
        self._linear(self._normed, layer.states, self._states)
        self._copies.append(self._copy(program, rows, index, self._states, self._weights.heads))
        self._among.append(self._plan(index, self._states, causal=True))
        program.attention(self._sequences, self._among[-1])
        self._linear(self._attended, layer.text_output, self._hidden, residual=self._hidden)
        self._norm(self._hidden, layer.look_norm, self._normed)
        query = self._apart.get(index, self._query)
        self._linear(self._normed, layer.query, query)
        self._across.append(self._plan(index, query, causal=False))
        program.attention(self._sequences, self._across[-1])
        self._linear(self._attended, layer.look_output, self._hidden, residual=self._hidden)
        self._norm(self._hidden, layer.feed_norm, self._normed)
        self._linear(self._normed, layer.widen, self._fed, activation=self._weights.activation)
        self._linear(self._fed, layer.narrow, self._hidden, residual=self._hidden)

    def _copy(
        self, program: Program, rows: Count, index: int, states: torch.Tensor, heads: Heads
    ) -> Operation:
        caches = (self.cache.keys[index], self.cache.values[index])
        return program.rotate(rows, states, heads, self._ones, self._zeros, caches)

    def _plan(self, index: int, query: torch.Tensor, *, causal: bool) -> AttentionPlan:
        heads = self._weights.heads
        return AttentionPlan(
            query=query.data_ptr(),
            key=self.cache.keys[index].data_ptr(),
            value=self.cache.values[index].data_ptr(),
            output=self._attended.data_ptr(),
            block_size=self.cache.block_size,
            heads=heads.query,
            key_heads=heads.key,
            width=heads.width,
            query_stride=query.stride(0),
            key_stride=heads.key * heads.width,
            output_stride=self._attended.stride(0),
            causal=int(causal),
            scale=heads.width**-0.5,
        )

    def _norm(self, source: torch.Tensor, norm: Norm, output: torch.Tensor) -> None:
        self._program.norm(
            self._rows, source, norm.weight, output, norm.epsilon, bias=norm.bias, centred=norm.centred
        )

    def _linear(self, source: torch.Tensor, layer: Linear, output: torch.Tensor, **how: Any) -> None:
        self._program.linear(self._rows, source, layer.weight, output, bias=layer.bias, **how)
