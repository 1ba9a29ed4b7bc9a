"""Fills one half of a model with its own tensors of a checkpoint, and no others.

Knows safetensors, shards, names and element types. Does not know which model it
fills: a family gives a table of name prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shared.checkpoint import tensor_files
from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint
from shared.families.load_progress import report

Half = Literal["encoder", "language"]
Prefixes = Mapping[str, tuple[Half | Literal["neither"], str]]
"""Beginning of a tensor's name in the file: the half that it belongs to, and what
replaces the beginning. The longest that fits counts. What serves training or
speculation alone, or a modality that is not served, belongs to neither."""

Fit = Callable[[torch.Tensor, torch.Size], torch.Tensor]
"""Brings a tensor that a checkpoint may hold in another layout to the shape that the module wants."""

_COMPUTED = (".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq", ".position_ids")
"""Ends of names that old checkpoints hold and that models compute by themselves."""

_SHOWN_NAMES = 4


def load_half(
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    half: Half,
    prefixes: Prefixes,
    device: torch.device,
    dtype: torch.dtype,
    fits: Mapping[str, Fit] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    read_apart: tuple[str, ...] = (),
) -> nn.Module:
    """Builds a module and fills it with its half of a checkpoint.

    Parameters are never allocated before their values are there, so that the
    peak is the half itself and the pages of one file.

    Args:
        build: makes the module; runs where parameters take no memory.
        half: whose tensors to read.
        prefixes: where each tensor of the checkpoint belongs.
        device: where the parameters go.
        dtype: their element type. Computed buffers keep theirs.
        fits: by the ending of a tensor's name, how to bring it to its shape.
        renamed: ends of names in older files, and the module's own ends.
        read_apart: ends of names in the files that are passed over here, as the caller reads them.

    Raises:
        InvalidRequestError: a tensor is missing, unknown, of a wrong shape or not finite.
    """
    with _parameters_without_memory():
        module = build()
    wanted = module.state_dict()
    files = tensor_files(checkpoint)
    files = {name: file for name, file in files.items() if not name.endswith((*_COMPUTED, *read_apart))}
    found = _names_of(half, files, prefixes, renamed)
    tied = _tied_output(checkpoint, module, found)
    missing = {_with_old_end(name, renamed) for name in set(wanted) - set(found) - tied}
    _check_names(half, checkpoint, missing, unknown=set(found) - set(wanted))
    values = dict(_read(found, wanted, device, dtype, fits))
    module.load_state_dict(values, strict=False, assign=True)
    if tied:
        module.lm_head.weight = module.model.embed_tokens.weight  # type: ignore[union-attr]
    return module.to(device).eval().requires_grad_(False)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters registered inside exist in shape alone; buffers are real.

    Computed buffers (rotary frequencies, position ids) are in no checkpoint, so
    a module built wholly without memory would lack them.
    """

    def strip(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    # torch types the hook as returning nothing, but takes what it returns.
    hook = register_module_parameter_registration_hook(strip)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _names_of(
    half: Half, files: Mapping[str, Path], prefixes: Prefixes, renamed: Mapping[str, str]
) -> dict[str, tuple[str, Path]]:
    """Maps the module's names of a half's tensors to the file's names and files."""
    found = {}
    for name, file in files.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if prefix is None:
            raise InvalidRequestError(f"{file} holds {name}, which belongs to no known part of the model")
        owner, replacement = prefixes[prefix]
        if owner == half:
            ours = _with_new_end(replacement + name.removeprefix(prefix), renamed)
            found[ours] = (name, file)
    return found


def _with_new_end(name: str, renamed: Mapping[str, str]) -> str:
    end = next((end for end in renamed if name.endswith(end)), None)
    return name if end is None else name.removesuffix(end) + renamed[end]


def _with_old_end(name: str, renamed: Mapping[str, str]) -> str:
    """A name for people, who may have an older file."""
    old = next((old for old, new in renamed.items() if name.endswith(new)), None)
    return name if old is None else f"{name} (or {name.removesuffix(renamed[old])}{old})"


def _tied_output(
    checkpoint: Checkpoint, module: nn.Module, found: Mapping[str, tuple[str, Path]]
) -> set[str]:
    """The output layer's name where it shares the input embedding, else nothing.

    A checkpoint that says "tied" and still holds an output layer means what it
    holds, as in transformers.
    """
    shares = getattr(module, "tied", False) and "lm_head.weight" not in found
    return {"lm_head.weight"} if shares else set()


def _check_names(half: Half, checkpoint: Checkpoint, missing: set[str], unknown: set[str]) -> None:
    for what, names in (("lacks", missing), ("holds unknown", unknown)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN_NAMES])
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise InvalidRequestError(f"{checkpoint.folder} {what} {half} weights: {shown}{more}")


def _read(
    found: Mapping[str, tuple[str, Path]],
    wanted: Mapping[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    fits: Mapping[str, Fit],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the module's tensors, file by file, each read once."""
    element_count = max(1, sum(wanted[name].numel() for name in found))
    read_count = 0
    for file in sorted({file for _, file in found.values()}):
        with safe_open(file, framework="pt") as tensors:
            for name, (stored_name, stored_in) in found.items():
                if stored_in == file:
                    value = tensors.get_tensor(stored_name)
                    for ending, fit in fits.items():
                        if name.endswith(ending):
                            value = fit(value, wanted[name].shape)
                    _check_shape(stored_name, value, wanted[name])
                    # A copy: a view into the mapped file would keep the file's pages.
                    value = value.to(device=device, dtype=dtype, copy=True)
                    check_finite(f"{file} holds {stored_name}, which", value)
                    yield name, value
                    read_count += wanted[name].numel()
                    report(read_count / element_count)


def check_finite(named: str, value: torch.Tensor) -> None:
    """Refuses weights that no model can compute with.

    Args:
        named: the subject of the sentence about it.
        value: as it will be computed with: a number may be beyond its new element type.

    Raises:
        InvalidRequestError: a number of it is infinite or none.
    """
    # A sum costs a tenth of the copy, the exact answer three times as much as that.
    if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        raise InvalidRequestError(
            f"{named} has numbers that are not finite in {str(value.dtype).removeprefix('torch.')}; the file"
            " is damaged, or --dtype is too narrow for it"
        )


def _check_shape(name: str, value: torch.Tensor, wanted: torch.Tensor) -> None:
    if value.shape != wanted.shape:
        raise InvalidRequestError(
            f"{name} has the shape {tuple(value.shape)}; config.json implies {tuple(wanted.shape)}"
        )
    if not value.is_floating_point():
        raise InvalidRequestError(f"{name} holds {value.dtype}; quantised checkpoints are not supported")
