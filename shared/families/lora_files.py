"""Where low-rank adapters (LoRA) lie and what their files say: in folders as the PEFT library writes them, or
among a checkpoint's own weights.

Knows files and names. Imports no torch, reads no tensor and knows no arithmetic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.checkpoint import names_in
from shared.errors import InvalidRequestError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

NARROW, WIDEN = ".lora_A.weight", ".lora_B.weight"
"""Ends of the names of an adapter's matrices, behind the adapted layer's name."""

_PREFIX = "base_model.model."
"""What PEFT puts before a layer's name. Files made by hand lack it."""

_FALSE_OR_ABSENT = (
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
)
"""Fields of PEFT's configuration that ask for more than one pair of matrices for each layer that
`target_modules` names; "none" counts as absent."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, its tensors not yet read.

    Attributes:
        place: the file or folder that it lies in, for errors.
        names: by a layer's name and one of the ends above, the stored name and its file.
        rank: rows of A.
        scale: factor of what it adds.
        is_target: whether it adapts the layer of a name.
    """

    place: Path
    names: Mapping[str, tuple[str, Path]]
    rank: int
    scale: float
    is_target: Callable[[str], bool]


def has_adapter(folder: Path) -> bool:
    """Says whether a folder holds an adapter."""
    return (folder / CONFIG_FILE).is_file()


def adapter_in(folder: Path) -> Adapter:
    """The adapter of a folder, in PEFT's layout.

    Raises:
        InvalidRequestError: there is none that can be served.
    """
    config = _read_config(folder)
    rank, scale = _rank_and_scale(folder / CONFIG_FILE, config, bool(config.get("use_rslora")))
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise InvalidRequestError(f"{folder} holds no {WEIGHTS_FILE}")
    names = {name.removeprefix(_PREFIX): (name, file) for name in names_in(file)}
    return Adapter(file, names, rank, scale, _target_test(folder, config))


def adapter_among(
    files: Mapping[str, Path], place: Path, name: str, config: Mapping[str, Any], targets: str
) -> Adapter:
    """The adapter `name` among a checkpoint's own tensors, as PEFT names them inside a model.

    Args:
        files: of each tensor, by its name.
        place: the checkpoint.
        config: says `r` and `lora_alpha`.
        targets: expression for the names of the layers that it adapts.

    Raises:
        InvalidRequestError: `config` does not describe an adapter.
    """
    rank, scale = _rank_and_scale(place / "config.json", config, root=False)
    names = {}
    for end in (NARROW, WIDEN):
        stored_end = end.replace(".weight", f".{name}.weight")
        for stored, file in files.items():
            if stored.endswith(stored_end):
                names[stored.removesuffix(stored_end) + end] = (stored, file)
    pattern = re.compile(targets)
    return Adapter(place, names, rank, scale, lambda layer: pattern.fullmatch(layer) is not None)


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


def _rank_and_scale(file: Path, config: Mapping[str, Any], root: bool) -> tuple[int, float]:
    """Args:
    root: the scale falls with the root of the rank, not with the rank.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InvalidRequestError(f"{file}: an adapter needs a rank r of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise InvalidRequestError(f"{file}: an adapter needs a lora_alpha")
    return rank, alpha / (rank**0.5 if root else rank)


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
