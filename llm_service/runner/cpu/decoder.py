"""A language model whose step is one program of our kernels.

Knows the order of operations of a layer and where a step's tensors lie. Does
not know how sequences are scheduled or how the cache is shared out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from llm_service.runner.attention.context import AttentionContext, StepShape
from llm_service.runner.attention.registration import CONTEXT_KEYWORD
from llm_service.runner.cpu.weights import DecoderWeights, LayerWeights
from llm_service.runner.kv_cache import KvCache
from shared.families.base import KvLayout, StateShape
from shared.kernels.library import Team
from shared.kernels.operation import AttentionPlan, Operation
from shared.kernels.program import Count, Program

OPERATIONS_PER_LAYER = 9
"""At most: one of them adds rows of an item behind a layer."""


class CpuDecoder:
    """See `LanguageModel`; takes any mixture of chunks and decoding sequences in one run.

    Attributes:
        extra_widths: rows that are added behind the first layers, in their order.
    """

    state_shapes: Mapping[str, StateShape] = MappingProxyType({})

    def __init__(
        self,
        weights: DecoderWeights,
        layout: KvLayout,
        team: Team,
        max_tokens: int,
        extra_widths: Mapping[str, int],
    ) -> None:
        """Takes the step's memory.

        Args:
            max_tokens: most tokens of a step.
        """
        self.extra_widths = extra_widths
        self._weights = weights
        self._team = team
        self._dtype = weights.norm.dtype
        self.hidden_size = weights.hidden_size
        self.vocabulary_size = weights.head.columns
        self.kv_layout = layout
        self._tokens, self._sequences = Count(), Count()
        self._hidden = self._buffer(max_tokens, weights.hidden_size)
        self._normed = self._buffer(max_tokens, weights.hidden_size)
        self._layers: _Layers | None = None
        self._cache: KvCache | None = None

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden)."""
        # The kernel would read beyond the matrix.
        if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocabulary_size:
            raise IndexError(f"a token id is outside the vocabulary of {self.vocabulary_size}")
        if self._weights.embedding is not None:
            return self._weights.embedding[token_ids]
        rows = torch.empty(len(token_ids), self.hidden_size, dtype=self._dtype)
        program = Program(self._team, self._dtype, 1)
        operation = program.unpack(Count(len(token_ids)), self._weights.head, rows)
        token_ids = token_ids.contiguous()
        operation.index = token_ids.data_ptr()
        program.run()
        return rows

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        extras: Mapping[str, torch.Tensor] | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        """Runs all layers on (tokens, hidden) with positions (axes, tokens); see `LanguageModel`.

        The result is overwritten by the next call.

        Args:
            extras: a (tokens, hidden) for each of `extra_widths`; None where the step has no media rows.
        """
        context = attention[CONTEXT_KEYWORD]
        assert isinstance(context, AttentionContext), "a step without its context"
        assert context.shape is not None, "a step without its shape"
        assert not context.shape.mutual, "these kernels know causal attention alone"
        count = len(inputs_embeds)
        self._hidden[:count].copy_(inputs_embeds)
        if context.cache is not self._cache or self._layers is None:
            self._cache = context.cache
            self._layers = self._write_program(self._cache)
        self._tokens.value = count
        self._sequences.value = len(context.shape.counts)
        self._layers.bind(positions, context.shape)
        self._layers.bind_extras([] if extras is None else [extras[name] for name in self.extra_widths])
        self._layers.program.run()
        return self._normed[:count]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        output = torch.empty(len(hidden), self.vocabulary_size, dtype=torch.float32)
        program = Program(self._team, self._dtype, 1)
        program.linear(Count(len(hidden)), hidden.contiguous(), self._weights.head, output)
        program.run()
        return output

    def _buffer(self, rows: int, width: int) -> torch.Tensor:
        return torch.zeros(rows, width, dtype=self._dtype)

    def _write_program(self, cache: KvCache) -> _Layers:
        weights = self._weights
        program = Program(self._team, self._dtype, OPERATIONS_PER_LAYER * len(weights.layers) + 2)
        layers = _Layers(
            program,
            weights,
            cache,
            self._tokens,
            self._sequences,
            self._hidden,
            self._normed,
            level_count=len(self.extra_widths),
        )
        program.norm(self._tokens, self._hidden, weights.norm, self._normed, weights.epsilon)
        return layers


class _Layers:
    """The program of all layers, and the places in it that change from step to step.

    Attributes:
        program: ends with the last layer's residual in `hidden`.
    """

    def __init__(
        self,
        program: Program,
        weights: DecoderWeights,
        cache: KvCache,
        tokens: Count,
        sequences: Count,
        hidden: torch.Tensor,
        normed: torch.Tensor,
        *,
        level_count: int,
    ) -> None:
        self.program = program
        self._weights, self._cache = weights, cache
        self._tokens, self._sequences = tokens, sequences
        self._hidden, self._normed = hidden, normed
        heads, rows = weights.heads, len(hidden)
        self._states = hidden.new_zeros(rows, (heads.query + 2 * heads.key) * heads.width)
        self._attended = hidden.new_zeros(rows, heads.query * heads.width)
        self._fed = hidden.new_zeros(rows, weights.layers[0].down.depth)
        self._cosines = torch.zeros(rows, heads.width // 2)
        self._sines = torch.zeros_like(self._cosines)
        self._bound: tuple[int, ...] = ()
        self._plans: list[AttentionPlan] = []
        self._rotations: list[Operation] = []
        self._levels: list[Operation] = []
        self._level_rows = Count()
        self._angles = program.angles(
            tokens, self._cosines, self._sines, weights.frequencies, weights.axes, weights.rotary_factor
        )
        for index, layer in enumerate(weights.layers):
            self._add_attention(index, layer)
            self._add_feed_forward(layer)
            if index < level_count:
                self._levels.append(program.add(self._level_rows, hidden))

    def bind(self, positions: torch.Tensor, shape: StepShape) -> None:
        """Points the program at a step's positions, slots and tables."""
        assert positions.stride(1) == 1 and shape.block_tables.stride(1) == 1, "rows are not contiguous"
        assert positions.stride(0) == 0 or len(positions) > int(self._weights.axes.max()), "too few axes"
        self._angles.positions = positions.data_ptr()
        self._angles.position_stride = positions.stride(0)
        slots, starts, lengths = (
            tensor.data_ptr() for tensor in (shape.slots, shape.query_starts, shape.lengths)
        )
        tables, stride = shape.block_tables.data_ptr(), shape.block_tables.stride(0)
        bound = (slots, starts, lengths, tables, stride)
        if bound == self._bound:
            return
        self._bound = bound
        for plan, rotation in zip(self._plans, self._rotations, strict=True):
            rotation.slots = slots
            plan.starts, plan.lengths, plan.tables, plan.table_stride = starts, lengths, tables, stride

    def bind_extras(self, extras: list[torch.Tensor]) -> None:
        """Points the program at the rows (tokens, hidden) that layers add; at none, where there are none."""
        self._level_rows.value = self._tokens.value if extras else 0
        for level, rows in zip(self._levels, extras, strict=False):
            assert rows.shape == (self._tokens.value, self._hidden.shape[1]), "rows of another shape"
            assert rows.dtype == self._hidden.dtype and rows.stride(1) == 1, "rows of another form"
            level.input, level.input_stride = rows.data_ptr(), rows.stride(0)

    def _add_attention(self, index: int, layer: LayerWeights) -> None:
        program, tokens, heads = self.program, self._tokens, self._weights.heads
        program.norm(tokens, self._hidden, layer.input_norm, self._normed, self._weights.epsilon)
        program.linear(tokens, self._normed, layer.states, self._states, bias=layer.states_bias)
        caches = (self._cache.keys[index], self._cache.values[index])
        self._rotations.append(
            program.rotate(tokens, self._states, heads, self._cosines, self._sines, caches, layer.head_norms)
        )
        self._plans.append(self._plan(index, layer))
        program.attention(self._sequences, self._plans[-1])
        program.linear(
            tokens, self._attended, layer.output, self._hidden, bias=layer.output_bias, residual=self._hidden
        )

    def _plan(self, index: int, layer: LayerWeights) -> AttentionPlan:
        heads = self._weights.heads
        return AttentionPlan(
            query=self._states.data_ptr(),
            key=self._cache.keys[index].data_ptr(),
            value=self._cache.values[index].data_ptr(),
            output=self._attended.data_ptr(),
            block_size=self._cache.block_size,
            heads=heads.query,
            key_heads=heads.key,
            width=heads.width,
            query_stride=self._states.stride(0),
            key_stride=heads.key * heads.width,
            output_stride=self._attended.stride(0),
            window=layer.window or 0,
            causal=1,
            scale=layer.scale,
        )

    def _add_feed_forward(self, layer: LayerWeights) -> None:
        program, tokens = self.program, self._tokens
        program.norm(tokens, self._hidden, layer.feed_norm, self._normed, self._weights.epsilon)
        program.linear(tokens, self._normed, layer.gated, self._fed, bias=layer.gated_bias)
        program.linear(
            tokens, self._fed, layer.down, self._hidden, bias=layer.down_bias, residual=self._hidden
        )
