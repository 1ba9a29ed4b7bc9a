"""Where adapters lie, in the layout of the PEFT library. Imports no torch."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def has_adapter(folder: Path) -> bool:
    """Says whether a folder holds an adapter."""
    return (folder / CONFIG_FILE).is_file()
