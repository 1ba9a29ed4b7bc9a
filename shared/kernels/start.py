"""Threads for our kernels, where a service may use them.

Knows when torch has to compute instead, and says why. Does not know models.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from shared.kernels.build import BuildError, built_library
from shared.kernels.cores import CoreTable
from shared.kernels.library import Library, Team
from shared.kernels.program import DATA_TYPES

logger = logging.getLogger(__name__)

_DEFAULT_THREADS = torch.get_num_threads()


def start_team(
    device: torch.device,
    dtype: torch.dtype,
    kernels: str,
    threads: int | None,
    shared_cores: str | None = None,
) -> Team | None:
    """A team of threads for a model, or None where torch is to compute.

    Args:
        kernels: "auto" or "torch".
        threads: None for torch's own number.
        shared_cores: file of the table through which services share the
            machine's cores, or None where there are no others.
    """
    if device.type != "cpu" or kernels == "torch":
        return None
    if dtype not in DATA_TYPES:
        logger.info("torch computes: there are no kernels for %s", dtype)
        return None
    try:
        team = Library(built_library()).make_team(threads or _DEFAULT_THREADS)
    except (BuildError, OSError) as error:
        logger.warning("torch computes, which is slower: %s", error)
        return None
    if shared_cores is not None:
        _share_cores(team, Path(shared_cores))
    return team


def _share_cores(team: Team, path: Path) -> None:
    try:
        team.share_cores(CoreTable(path), len(os.sched_getaffinity(0)))
    except OSError as error:
        logger.warning("cores are not shared by need, %s: %s", path, error)


def leave_cores_to(team: Team) -> None:
    """Torch's threads wait for work by spinning, on the cores that the team needs: it keeps one."""
    if team.size > 1:
        torch.set_num_threads(1)
