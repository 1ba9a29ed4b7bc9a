"""Transformer blocks of vision and audio towers on our kernels, in place of a module's own `forward`.

Knows pre-norm blocks over runs of rows that attend to themselves, rotary or
not. Does not know families: a family says where a block keeps its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shared.kernels.library import Team
from shared.kernels.operation import Activation, AttentionPlan, Operation
from shared.kernels.program import Count, Heads, PackedMatrix, Program, pack_matrix

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "quick_gelu": Activation.QUICK_GELU,
    "silu": Activation.SILU,
    "relu": Activation.RELU,
}
"""Names of transformers' configurations. A gated layer is silu by itself."""


def obstacle(parts: Sequence[nn.Module], activation: str, *, gated: bool = False) -> str | None:
    """Why parts of a tower cannot run on these kernels, or None where they can.

    Args:
        activation: its name in the configuration.
        gated: the feed-forward has a gate, which is always silu here.
    """
    if gated and activation != "silu":
        return f"the activation is {activation}, of a gated layer"
    if activation not in ACTIVATIONS:
        return f"the activation is {activation}"
    weights = [weight for part in parts for weight in part.parameters() if weight.dim() > 1]
    odd = [weight[0].numel() for weight in weights if weight[0].numel() % 2]
    return f"a width is odd: {odd[0]}" if odd else None


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm where centred, else a root-mean-square norm."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float
    centred: bool

    @classmethod
    def of(cls, module: Any) -> Norm:
        """Reads torch's and transformers' norms."""
        centred = isinstance(module, nn.LayerNorm)
        epsilon = module.eps if centred else module.variance_epsilon
        bias = module.bias.data if centred and module.bias is not None else None
        return cls(module.weight.data, bias, float(epsilon), centred)


@dataclass(frozen=True, slots=True)
class Linear:
    """A packed linear layer."""

    weight: PackedMatrix
    bias: torch.Tensor | None

    @classmethod
    def of(cls, team: Team, *modules: nn.Linear) -> Linear:
        """Packs layers of one input as one, and lets go of the originals."""
        weight = pack_matrix(team, torch.cat([module.weight.data for module in modules]))
        return cls(weight, _take_biases(*modules))

    @classmethod
    def gated(cls, team: Team, gate: nn.Linear, up: nn.Linear) -> Linear:
        """Packs a gate and an up layer side by side, and lets go of the originals."""
        weight = pack_matrix(team, gate.weight.data, up.weight.data)
        return cls(weight, _take_biases(gate, up))


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    attention_norm: Norm
    states: Linear
    output: Linear
    feed_norm: Norm
    widen: Linear
    narrow: Linear
    activation: Activation
    heads: Heads


class Workspace:
    """Memory that the blocks of a tower use one after the other; grows to the largest batch."""

    def __init__(self, team: Team, dtype: torch.dtype) -> None:
        self.team = team
        self.dtype = dtype
        self.row_count = 0
        self.rows, self.runs = Count(), Count()
        self._tensors: dict[str, torch.Tensor] = {}

    def reserve(self, row_count: int) -> None:
        """Makes room for a batch; older tensors are no longer used."""
        self.rows.value = row_count
        if row_count > self.row_count:
            self.row_count = row_count
            self._tensors = {}

    def tensor(self, name: str, width: int) -> torch.Tensor:
        """(row_count, width) of the workspace's type, the same for each use of a name."""
        if name not in self._tensors:
            self._tensors[name] = torch.empty(self.row_count, width, dtype=self.dtype)
        return self._tensors[name]


class KernelBlock:
    """One block as a program, called as transformers calls its vision blocks."""

    def __init__(self, weights: BlockWeights, workspace: Workspace) -> None:
        self._weights = weights
        self._workspace = workspace
        self._program: _BlockProgram | None = None

    def run_segments(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """(rows, width) whose runs, from one of `cu_seqlens` to the next, attend to themselves.

        Args:
            position_embeddings: cosines and sines (rows, head width), the two halves alike.
        """
        hidden_states = hidden_states.contiguous()
        starts = cu_seqlens.to(torch.int32).contiguous()
        self._workspace.reserve(len(hidden_states))
        self._workspace.runs.value = len(starts) - 1
        program = self._program
        if program is None or program.row_count < len(hidden_states):
            program = self._program = _BlockProgram(self._weights, self._workspace)
        output = torch.empty_like(hidden_states)
        program.run(hidden_states, output, starts, position_embeddings)
        return output

    def run_batch(self, hidden_states: torch.Tensor, attention_mask: None = None, **_: Any) -> torch.Tensor:
        """(items, rows, width) where each item attends to itself."""
        assert attention_mask is None, "blocks of equal items need no mask"
        items, rows, width = hidden_states.shape
        starts = torch.arange(0, items * rows + 1, rows, dtype=torch.int32)
        return self.run_segments(hidden_states.reshape(-1, width), starts).view(items, rows, width)


class _BlockProgram:
    """The operations of a block for up to `row_count` rows."""

    def __init__(self, weights: BlockWeights, workspace: Workspace) -> None:
        self.row_count = workspace.row_count
        self._weights = weights
        width = weights.output.weight.columns
        normed, middle = (workspace.tensor(name, width) for name in ("normed", "middle"))
        self._states = workspace.tensor("states", weights.states.weight.columns)
        attended = workspace.tensor("attended", weights.output.weight.depth)
        fed = workspace.tensor("fed", weights.narrow.weight.depth)
        self._plan = self._attention_plan(attended)
        self._before = Program(workspace.team, workspace.dtype, 2)
        self._turn = Program(workspace.team, workspace.dtype, 1)
        self._after = Program(workspace.team, workspace.dtype, 5)
        rows = workspace.rows
        self._input = self._norm(self._before, rows, normed, normed, weights.attention_norm)
        self._linear(self._before, rows, normed, weights.states, self._states)
        self._after.attention(workspace.runs, self._plan)
        self._joined = self._linear(self._after, rows, attended, weights.output, middle, residual=middle)
        self._norm(self._after, rows, middle, normed, weights.feed_norm)
        self._linear(self._after, rows, normed, weights.widen, fed, activation=weights.activation)
        self._output = self._linear(self._after, rows, fed, weights.narrow, middle, residual=middle)
        cosines = torch.empty(1, weights.heads.width // 2)
        self._rotation = self._turn.rotate(rows, self._states, weights.heads, cosines, cosines)

    def run(
        self,
        source: torch.Tensor,
        output: torch.Tensor,
        starts: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Computes (rows, width) `source` to `output`."""
        self._input.input = self._joined.residual = source.data_ptr()
        self._output.output = output.data_ptr()
        self._plan.starts = starts.data_ptr()
        self._before.run()
        if position_embeddings is not None:
            half = self._weights.heads.width // 2
            cosines, sines = (part[:, :half].float().contiguous() for part in position_embeddings)
            self._rotation.cosines, self._rotation.sines = cosines.data_ptr(), sines.data_ptr()
            self._turn.run()
        self._after.run()

    def _attention_plan(self, attended: torch.Tensor) -> AttentionPlan:
        heads, states = self._weights.heads, self._states
        size = states.element_size() * heads.width
        return AttentionPlan(
            query=states.data_ptr(),
            key=states.data_ptr() + size * heads.query,
            value=states.data_ptr() + size * (heads.query + heads.key),
            output=attended.data_ptr(),
            heads=heads.query,
            key_heads=heads.key,
            width=heads.width,
            query_stride=states.stride(0),
            key_stride=states.stride(0),
            output_stride=attended.stride(0),
            causal=0,
            scale=heads.width**-0.5,
        )

    @staticmethod
    def _norm(
        program: Program, rows: Count, source: torch.Tensor, output: torch.Tensor, norm: Norm
    ) -> Operation:
        return program.norm(
            rows, source, norm.weight, output, norm.epsilon, bias=norm.bias, centred=norm.centred
        )

    @staticmethod
    def _linear(
        program: Program, rows: Count, source: torch.Tensor, layer: Linear, output: torch.Tensor, **how: Any
    ) -> Operation:
        return program.linear(rows, source, layer.weight, output, bias=layer.bias, **how)


class KernelLinear(nn.Module):
    """A linear layer on our kernels, for what stands outside the blocks."""

    def __init__(self, team: Team, layer: Linear) -> None:
        super().__init__()
        self._team = team
        self._layer = layer

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        """(..., depth) to (..., columns)."""
        rows = source.reshape(-1, source.shape[-1]).contiguous()
        output = rows.new_empty(len(rows), self._layer.weight.columns)
        program = Program(self._team, rows.dtype, 1)
        program.linear(Count(len(rows)), rows, self._layer.weight, output, bias=self._layer.bias)
        program.run()
        return output.view(*source.shape[:-1], output.shape[1])


def replace_patches(convolution: nn.Module, team: Team) -> KernelLinear:
    """A convolution whose patches do not overlap, as a linear layer on flat patches."""
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, torch.Tensor), "a convolution without weights"
    packed = pack_matrix(team, weight.data.flatten(1))
    return KernelLinear(team, Linear(packed, bias.data if isinstance(bias, torch.Tensor) else None))


def replace_linear_layers(module: nn.Module, team: Team) -> None:
    """Puts `KernelLinear` in the place of every linear layer below a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, KernelLinear(team, Linear.of(team, child)))


def _take_biases(*modules: nn.Linear) -> torch.Tensor | None:
    """Joined biases, a missing one as zeros beside others; the weights are let go."""
    biases = [module.bias for module in modules]
    joined = None
    if any(bias is not None for bias in biases):
        parts = [
            module.weight.new_zeros(module.out_features) if module.bias is None else module.bias.data
            for module in modules
        ]
        joined = torch.cat(parts).contiguous()
    for module in modules:
        module.weight.data = module.weight.data.new_empty(0)
    return joined
