"""Finds a checkpoint on disk or on the Hugging Face hub and reads what it says about itself.

Knows the files of a checkpoint folder. Does not know any model family, and
reads no weights (see `shared/families/weights.py`); imports neither torch nor
transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
"""Files to fetch from the hub: never *.bin or *.py, which would be executed."""

_LAYER_COUNT = re.compile(r"(?:^|_)(?:layers?|blocks|depth)$")
_MAX_LAYER_COUNT = 10_000

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"


def find_checkpoint(name: str, part_folders: Sequence[str] = ()) -> Checkpoint:
    """Returns the checkpoint in the folder `name`, or of the hub id `name`.

    Args:
        part_folders: see `Checkpoint`.

    Raises:
        InvalidRequestError: no such folder or id, or a folder that is no
            checkpoint; the text says what is wrong.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return read_checkpoint(folder, part_folders)
    if folder.exists():
        raise InvalidRequestError(f"{name} is a file; a checkpoint is a folder or a Hugging Face id")
    if not HUB_ID.fullmatch(name):
        raise InvalidRequestError(f"there is no folder {name}, and it is no Hugging Face id (OWNER/NAME)")
    return read_checkpoint(_download(name), part_folders)


def read_checkpoint(folder: Path, part_folders: Sequence[str] = ()) -> Checkpoint:
    """Reads a local checkpoint folder.

    Args:
        part_folders: see `Checkpoint`.

    Raises:
        InvalidRequestError: config.json is missing or no JSON object, or there
            are no safetensors.
    """
    if not (folder / "config.json").is_file():
        raise InvalidRequestError(f"{folder} holds no config.json, so it is no checkpoint")
    config = _read_object(folder / "config.json")
    _check_layer_counts(folder / "config.json", config)
    generation = folder / "generation_config.json"
    checkpoint = Checkpoint(
        folder,
        config,
        _read_object(generation) if generation.is_file() else {},
        part_folders=tuple(Path(given).expanduser() for given in part_folders),
    )
    tensor_files(checkpoint)
    return checkpoint


def configured_dtype(checkpoint: Checkpoint) -> str | None:
    """The element type that config.json names, for example "bfloat16", or None."""
    name = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return name if isinstance(name, str) else None


def tensor_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Returns the file of each tensor of a checkpoint by the tensor's name, its own tensors last.

    Raises:
        InvalidRequestError: no safetensors, or an index that does not fit the folder.
    """
    found: dict[str, Path] = {}
    for folder in (*checkpoint.further, checkpoint.folder):
        found |= _files_in(folder)
    return found


def has_tensors(folder: Path) -> bool:
    """Says whether a folder holds safetensors."""
    return (folder / INDEX_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def _files_in(folder: Path) -> dict[str, Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        return _indexed_files(index)
    single = folder / WEIGHTS_FILE
    if not single.is_file():
        raise InvalidRequestError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    return dict.fromkeys(names_in(single), single)


def _indexed_files(index: Path) -> dict[str, Path]:
    files = _read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InvalidRequestError(f"{index} has no weight_map")
    for name in sorted(set(map(str, files.values()))):
        # Only files beside the index: a name with a folder in it could lead anywhere.
        if Path(name).name != name or not (index.parent / name).is_file():
            raise InvalidRequestError(f"{index} names {name}, which is not in the folder")
    return {tensor: index.parent / name for tensor, name in files.items()}


def names_in(file: Path) -> list[str]:
    """The names of a file's tensors.

    Raises:
        InvalidRequestError: it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise InvalidRequestError(f"{file} is no safetensors file: {error}") from error


def _check_layer_counts(file: Path, part: Mapping[str, Any], path: str = "") -> None:
    """Refuses what would be built without end, before any library begins with it.

    Raises:
        InvalidRequestError: a part of the model has more layers than any has.
    """
    for name, value in part.items():
        if isinstance(value, dict):
            _check_layer_counts(file, value, f"{path}{name}.")
        elif isinstance(value, int) and value > _MAX_LAYER_COUNT and _LAYER_COUNT.search(name):
            raise InvalidRequestError(
                f"{file}: {path}{name} is {value}; a number of layers is at most {_MAX_LAYER_COUNT}"
            )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequestError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{file} holds no JSON object")
    return content


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidRequestError(f"{name} could not be fetched from the hub: {reason}") from error
