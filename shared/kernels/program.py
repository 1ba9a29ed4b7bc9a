"""Writes down what a model computes, once; runs it any number of times.

Knows tensors and the operations of the library. Does not know models: a family
or a runner says which operation follows which. Rows are (rows, width) tensors
whose rows may be apart; how many of them count is read from a `Count` at every
run.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from shared.kernels.library import Team
from shared.kernels.operation import Activation, AttentionPlan, DataType, Kind, Operation

PANEL = 32
LANES = 16
DATA_TYPES = {torch.float32: DataType.FLOAT32, torch.bfloat16: DataType.BFLOAT16}


class Count:
    """A number that programs read when they run."""

    def __init__(self, value: int = 0) -> None:
        self._cell = ctypes.c_int64(value)
        self.address = ctypes.addressof(self._cell)

    @property
    def value(self) -> int:
        """The number now."""
        return self._cell.value

    @value.setter
    def value(self, value: int) -> None:
        self._cell.value = value


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix in panels, as source/matrix.hpp describes.

    Attributes:
        panels: the storage.
        columns: outputs of the linear layer, gate and up together where gated.
        depth: its inputs.
        gated: columns of a gate and an up matrix side by side.
    """

    panels: torch.Tensor
    columns: int
    depth: int
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of queries, keys and values is cut: `query` + 2 x `key` heads of `width`."""

    query: int
    key: int
    width: int


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Root-mean-square norms of each head by itself: weights (width,) of queries' and of keys'."""

    query: torch.Tensor
    key: torch.Tensor
    epsilon: float


def pack_matrix(team: Team, weight: torch.Tensor, up: torch.Tensor | None = None) -> PackedMatrix:
    """Copies a (columns, depth) matrix, or a gate and an up matrix of one shape, into panels."""
    weight = weight.contiguous()
    columns, depth = weight.shape
    per_panel = PANEL if up is None else LANES
    panel_count = -(-columns // per_panel)
    panels = torch.empty(panel_count * PANEL * _padded(depth, weight.dtype), dtype=weight.dtype)
    operation = Operation(
        kind=Kind.PACK,
        data_type=DATA_TYPES[weight.dtype],
        output=panels.data_ptr(),
        columns=columns if up is None else 2 * columns,
        depth=depth,
        weight=weight.data_ptr(),
        activation=Activation.NONE if up is None else Activation.SILU_GATE,
    )
    if up is not None:
        assert up.shape == weight.shape, "gate and up differ in shape"
        up = up.contiguous()
        operation.residual = up.data_ptr()
    team.run((Operation * 1)(operation), 1)
    return PackedMatrix(panels, operation.columns, depth, up is not None)


def _padded(depth: int, dtype: torch.dtype) -> int:
    return depth if dtype == torch.float32 else depth + depth % 2


class Program:
    """Operations on tensors of one element type, in order.

    Operations that are returned are the program's own: what is set in them
    holds from the next run on.
    """

    def __init__(self, team: Team, dtype: torch.dtype, capacity: int) -> None:
        """Makes room for `capacity` operations."""
        self._team = team
        self._dtype = dtype
        self._operations = (Operation * capacity)()
        self._length = 0
        self._kept: list[object] = []

    def linear(
        self,
        rows: Count,
        source: torch.Tensor,
        weight: PackedMatrix,
        output: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        activation: Activation = Activation.NONE,
        residual: torch.Tensor | None = None,
    ) -> Operation:
        """output = activation(source x weight + bias) + residual.

        Args:
            source: (rows, depth); depth is even in bfloat16.
            output: (rows, columns), half as many where the weight is gated; may
                be the residual itself. float32, or the program's type.
            bias: (columns,).
            residual: of the program's type.
        """
        assert source.stride(1) == 1 and output.stride(1) == 1, "rows are not contiguous"
        assert self._dtype == torch.float32 or weight.depth % 2 == 0, "bfloat16 rows of odd length"
        assert source.dtype == weight.panels.dtype == self._dtype, "another type than the program's"
        assert output.dtype in (self._dtype, torch.float32), "the output has a type of its own"
        assert residual is None or residual.dtype == self._dtype, "the residual has a type of its own"
        step = self._add(Kind.LINEAR, rows, source, output, weight.panels, bias, residual)
        step.columns, step.depth = weight.columns, weight.depth
        step.activation = Activation.SILU_GATE if weight.gated else activation
        step.wide = int(output.dtype == torch.float32)
        return step

    def norm(
        self,
        rows: Count,
        source: torch.Tensor,
        weight: torch.Tensor,
        output: torch.Tensor,
        epsilon: float,
        *,
        bias: torch.Tensor | None = None,
        centred: bool = False,
    ) -> Operation:
        """Root-mean-square norm of each row, or layer norm where centred."""
        step = self._add(Kind.NORM, rows, source, output, weight, bias)
        step.depth, step.epsilon, step.wide = source.shape[1], epsilon, int(centred)
        return step

    def angles(
        self,
        rows: Count,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        frequencies: torch.Tensor,
        axes: torch.Tensor,
        factor: float,
    ) -> Operation:
        """Cosines and sines, float32 (rows, width / 2), of positions that the caller sets.

        Args:
            frequencies: float32 (width / 2,).
            axes: int32 (width / 2,), which axis of the positions each frequency takes.

        Returns:
            The operation, whose `positions` and `position_stride` are to be set before a run.
        """
        step = self._add(Kind.ANGLES, rows, None, cosines)
        step.keys, step.width, step.epsilon = sines.data_ptr(), 2 * cosines.shape[1], factor
        step.frequencies, step.axes = frequencies.data_ptr(), axes.data_ptr()
        self._kept += [sines, frequencies, axes]
        return step

    def rotate(
        self,
        rows: Count,
        states: torch.Tensor,
        heads: Heads,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor] | None = None,
        norms: HeadNorms | None = None,
    ) -> Operation:
        """Rotates queries and keys of (rows, all heads x width) in place.

        Args:
            norms: of the program's type; are applied first.
            caches: keys and values, (slots, key heads x width), to copy each
                row's to; then the returned operation's `slots` is to be set.
        """
        step = self._add(Kind.ROTATE, rows, None, states)
        step.heads, step.key_heads, step.width = heads.query, heads.key, heads.width
        step.cosines, step.sines = cosines.data_ptr(), sines.data_ptr()
        self._kept += [cosines, sines, caches]
        if caches is not None:
            step.keys, step.values = (cache.data_ptr() for cache in caches)
        if norms is not None:
            for weight in (norms.query, norms.key):
                assert weight.shape == (heads.width,) and weight.is_contiguous(), "a norm of another width"
                assert weight.dtype == self._dtype, "a norm of another type than the program's"
            self._kept.append(norms)
            step.query_norm, step.key_norm = norms.query.data_ptr(), norms.key.data_ptr()
            step.epsilon = norms.epsilon
        return step

    def attention(self, sequences: Count, plan: AttentionPlan) -> None:
        """Attention by a plan whose pointers the caller keeps alive; `sequences` of it count."""
        step = self._add(Kind.ATTENTION, None, None, None)
        step.attention, step.sequences = ctypes.pointer(plan), sequences.address
        self._kept += [plan, sequences]

    def add(self, rows: Count, output: torch.Tensor) -> Operation:
        """output += rows that the caller sets.

        Args:
            output: (rows, width) of the program's type.

        Returns:
            The operation, whose `input`, the first of rows of the same width and type, and `input_stride`
            are to be set before a run in which `rows` counts any.
        """
        assert output.stride(1) == 1 and output.dtype == self._dtype, "rows of another form"
        step = self._add(Kind.ADD, rows, None, output)
        step.depth = output.shape[1]
        return step

    def unpack(self, rows: Count, weight: PackedMatrix, output: torch.Tensor) -> Operation:
        """Rows of a packed matrix as they were; the returned operation's `index` is to be set."""
        assert self._dtype == torch.float32 or weight.depth % 2 == 0, "bfloat16 rows of odd length"
        assert not weight.gated, "a gate and an up matrix lie side by side"
        step = self._add(Kind.UNPACK, rows, None, output, weight.panels)
        step.depth = weight.depth
        return step

    def run(self) -> None:
        """Runs all operations; returns when they are done."""
        self._team.run(self._operations, self._length)

    def _add(
        self,
        kind: Kind,
        rows: Count | None,
        source: torch.Tensor | None,
        output: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> Operation:
        """Appends an operation, and keeps alive what it points to."""
        assert self._length < len(self._operations), "more operations than there is room for"
        step = self._operations[self._length]
        self._length += 1
        self._kept += [rows, source, output, weight, bias, residual]
        step.kind, step.data_type = kind, DATA_TYPES[self._dtype]
        if rows is not None:
            step.rows = rows.address
        if source is not None:
            step.input, step.input_stride = source.data_ptr(), source.stride(0)
        if output is not None:
            step.output, step.output_stride = output.data_ptr(), output.stride(0)
        if residual is not None:
            step.residual, step.residual_stride = residual.data_ptr(), residual.stride(0)
        step.weight = None if weight is None else weight.data_ptr()
        step.bias = None if bias is None else bias.data_ptr()
        return step
