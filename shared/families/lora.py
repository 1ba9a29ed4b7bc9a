"""Low-rank adapters (LoRA) on a loaded model.

An adapter adds (alpha / rank) x B A to matrices of a model (Hu et al. 2021, equation 3).
Here matrices stay as they are and the addition is made to the rows of those sequences
that an adapter is for, so that one step holds rows of several adapters and of none.

Knows the arithmetic. Does not know files' layouts, nor which prompt takes which adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from shared.errors import InvalidRequestError
from shared.families.base import RowRun
from shared.families.lora_files import NARROW, WIDEN, Adapter

_SHOWN_NAMES = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to one matrix (outputs, inputs).

    Attributes:
        narrow: A, (rank, inputs).
        widen: B, (outputs, rank).
        scale: factor of the product.
    """

    narrow: torch.Tensor
    widen: torch.Tensor
    scale: float

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) to what is added, (rows, outputs)."""
        return functional.linear(functional.linear(rows, self.narrow), self.widen) * self.scale


class AdaptedRows:
    """Which rows of a step each adapter is for; all adapted layers of a model share one.

    Attributes:
        indexes: int64 (rows,) by the adapter's name; None: all rows.
    """

    def __init__(self) -> None:
        self.indexes: dict[str, torch.Tensor | None] = {}

    def choose(self, runs: Sequence[RowRun], device: torch.device) -> None:
        """Takes the runs of a step; () where no row is adapted."""
        names = {run.variant for run in runs}
        self.indexes = {}
        for name in sorted(names - {""}):
            rows = [
                row for run in runs if run.variant == name for row in range(run.first, run.first + run.count)
            ]
            self.indexes[name] = torch.tensor(rows, device=device) if len(names) > 1 else None


class AdaptedLinear(nn.Module):
    """A linear layer and what each adapter adds to it.

    Rows of no adapter are those of the layer alone, to the bit.
    """

    def __init__(self, linear: nn.Linear, pairs: Mapping[str, Pair], rows: AdaptedRows) -> None:
        """Args:
        pairs: by the adapter's name; adapters that leave the layer alone have none.
        """
        super().__init__()
        self.linear = linear
        self._pairs = dict(pairs)
        self._rows = rows

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(1, tokens, inputs) to (1, tokens, outputs)."""
        output: torch.Tensor = self.linear(states)
        for name, index in self._rows.indexes.items():
            pair = self._pairs.get(name)
            if pair is None:
                continue
            if index is None:
                output += pair.of(states)
            else:
                output[0].index_add_(0, index, pair.of(states[0].index_select(0, index)))
        return output


def attach_adapters(model: nn.Module, adapters: Mapping[str, Adapter]) -> AdaptedRows:
    """Reads adapters onto a loaded model, where its weights are and in their type.

    Args:
        adapters: by the name that runs of rows have as their variant.

    Returns:
        What chooses rows, before each run of the model.

    Raises:
        InvalidRequestError: an adapter does not fit the model; the text names what.
    """
    rows = AdaptedRows()
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    read = {name: _read(adapter, linears) for name, adapter in adapters.items()}
    for path, linear in linears.items():
        pairs = {name: layers[path] for name, layers in read.items() if path in layers}
        if pairs:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, AdaptedLinear(linear, pairs, rows))
    return rows


def _read(adapter: Adapter, linears: Mapping[str, nn.Linear]) -> dict[str, Pair]:
    """An adapter's pairs by the name of the layer that each is for."""
    targets = {path: linear for path, linear in linears.items() if adapter.is_target(path)}
    wanted = {f"{path}{end}" for path in targets for end in (NARROW, WIDEN)}
    found = set(adapter.names)
    for what, names in (("lacks", wanted - found), ("holds unknown weights", found - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN_NAMES])
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise InvalidRequestError(f"{adapter.place}, an adapter, {what}: {shown}{more}")
    tensors = _read_tensors(adapter)
    return {path: _pair(adapter, path, linear, tensors) for path, linear in targets.items()}


def _pair(adapter: Adapter, path: str, linear: nn.Linear, tensors: Mapping[str, torch.Tensor]) -> Pair:
    shapes = {NARROW: (adapter.rank, linear.in_features), WIDEN: (linear.out_features, adapter.rank)}
    narrow, widen = (
        # A copy: a view into the mapped file would keep the file's pages.
        _checked(adapter, f"{path}{end}", tensors[f"{path}{end}"], shape).to(
            linear.weight.device, linear.weight.dtype, copy=True
        )
        for end, shape in shapes.items()
    )
    return Pair(narrow, widen, adapter.scale)


def _checked(adapter: Adapter, name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tensor.shape != shape or not tensor.is_floating_point():
        raise InvalidRequestError(
            f"{adapter.place}: {name} holds {tensor.dtype} {tuple(tensor.shape)};"
            f" the model implies numbers of the shape {shape}"
        )
    return tensor


def _read_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The tensors by their names in `adapter.names`."""
    values = {}
    for file in sorted({file for _, file in adapter.names.values()}):
        with safe_open(file, framework="pt") as tensors:
            for name, (stored, stored_in) in adapter.names.items():
                if stored_in == file:
                    values[name] = tensors.get_tensor(stored)
    return values
