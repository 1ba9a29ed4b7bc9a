"""How much main memory this process may still take.

Knows the machine's memory and the limit of its control group, as containers
have one. Does not know what the memory is for.
"""

from __future__ import annotations

from pathlib import Path

import psutil

_GROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of the control group, in its second and in its first version."""


def available_byte_count(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping and without passing the control group's limit.

    Args:
        root: of the file system, where the control group's files are.
    """
    available = int(psutil.virtual_memory().available)
    for limit_file, use_file in _GROUP_FILES:
        limit, use = _read_number(root / limit_file), _read_number(root / use_file)
        if limit is not None and use is not None:
            available = min(available, max(0, limit - use))
    return available


def _read_number(file: Path) -> int | None:
    """The number in a file; None where there is no such file, or it says "max"."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
