"""Low-rank adapters (LoRA) beside a checkpoint's weights, in the layout of the PEFT library.

An adapter adds (alpha / rank) x B A to matrices of a model (Hu et al. 2021, equation 3).
Here matrices stay as they are and the addition is made to the rows of those sequences
that an adapter is for, so that one step holds rows of several adapters and of none.

Knows files, names and the arithmetic. Does not know which prompt takes which adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from shared.errors import InvalidRequestError
from shared.families.base import RowRun
from shared.families.lora_files import CONFIG_FILE, WEIGHTS_FILE

_PREFIX = "base_model.model."
"""What PEFT puts before a module's name."""

_ENDS = (".lora_A.weight", ".lora_B.weight")

_FALSE_OR_ABSENT = (
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "use_dora",
)
"""Fields of PEFT's configuration that ask for more than the sum above; "none" counts as absent."""

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


def attach_adapters(model: nn.Module, folders: Mapping[str, Path]) -> AdaptedRows:
    """Puts the adapters of some folders on a loaded model, where its weights are and in their type.

    Args:
        folders: by the adapter's name.

    Returns:
        What chooses rows, before each run of the model.

    Raises:
        InvalidRequestError: an adapter does not fit the model; the text names what.
    """
    rows = AdaptedRows()
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    adapters = {name: _read_adapter(folder, linears) for name, folder in folders.items()}
    for path, linear in linears.items():
        pairs = {name: adapter[path] for name, adapter in adapters.items() if path in adapter}
        if pairs:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, AdaptedLinear(linear, pairs, rows))
    return rows


def _read_adapter(folder: Path, linears: Mapping[str, nn.Linear]) -> dict[str, Pair]:
    """An adapter's pairs by the name of the layer that each is for."""
    config = _read_config(folder)
    rank, scale = _rank_and_scale(folder, config)
    tensors = _read_tensors(folder)
    is_target = _target_test(folder, config)
    wanted = {f"{path}{end}" for path in linears if is_target(path) for end in _ENDS}
    for what, names in (("lacks", wanted - set(tensors)), ("holds unknown weights", set(tensors) - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN_NAMES])
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise InvalidRequestError(f"{folder / WEIGHTS_FILE} {what}: {shown}{more}")
    return {
        path: _pair(folder, path, linear, tensors, rank, scale)
        for path, linear in linears.items()
        if is_target(path)
    }


def _pair(
    folder: Path, path: str, linear: nn.Linear, tensors: Mapping[str, torch.Tensor], rank: int, scale: float
) -> Pair:
    shapes = ((rank, linear.in_features), (linear.out_features, rank))
    narrow, widen = (
        _checked(folder, f"{path}{end}", tensors[f"{path}{end}"], shape).to(
            linear.weight.device, linear.weight.dtype
        )
        for end, shape in zip(_ENDS, shapes, strict=True)
    )
    return Pair(narrow, widen, scale)


def _checked(folder: Path, name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tensor.shape != shape or not tensor.is_floating_point():
        raise InvalidRequestError(
            f"{folder / WEIGHTS_FILE}: {name} holds {tensor.dtype} {tuple(tensor.shape)};"
            f" the model implies numbers of the shape {shape}"
        )
    return tensor


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InvalidRequestError(f"{file} does not describe a LoRA adapter")
    for name in _FALSE_OR_ABSENT:
        value = config.get(name)
        if value and value != "none":
            raise InvalidRequestError(f"{file}: adapters with {name} = {value!r} are not supported")
    return config


def _rank_and_scale(folder: Path, config: Mapping[str, Any]) -> tuple[int, float]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise InvalidRequestError(f"{folder / CONFIG_FILE} needs a rank r of at least 1 and a lora_alpha")
    assert isinstance(rank, int)
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _target_test(folder: Path, config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a layer's name is meant by `target_modules`: an expression for whole names, or their ends."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InvalidRequestError(f"{folder / CONFIG_FILE}: target_modules: {error}") from error
        return lambda name: pattern.fullmatch(name) is not None
    if isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        return lambda name: any(name == target or name.endswith(f".{target}") for target in targets)
    raise InvalidRequestError(f"{folder / CONFIG_FILE} names no target_modules")


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors by the layer's name and one of `_ENDS`."""
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name.removeprefix(_PREFIX): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error
