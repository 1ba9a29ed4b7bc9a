"""Compiled kernels and teams of threads, made once."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from shared.kernels.build import FLAGS, build
from shared.kernels.library import Library, Team

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Of one operation on numbers around 1, for each element type."""

PORTABLE = tuple(flag for flag in FLAGS if flag != "-march=native")
TILES = (*FLAGS, "-DPERCEPT_EMULATE_TILES")
BUILDS = {"native": FLAGS, "portable": PORTABLE, "tiles": TILES}
"""For this processor, for any of its kind, and with emulated tiles: the branches of the sources differ."""


@lru_cache
def library(name: str) -> Library:
    """The kernels of one of `BUILDS`."""
    return Library(build(BUILDS[name]))


@lru_cache
def team_of(threads: int, name: str = "native") -> Team:
    """Threads that stay for the session."""
    return library(name).make_team(threads)


@pytest.fixture(params=BUILDS)
def team(request: pytest.FixtureRequest) -> Team:
    """Two threads on each build."""
    return team_of(2, request.param)


@pytest.fixture(params=TOLERANCES, ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each element type."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(autouse=True, scope="session")
def compiler_there(needs_compiler: None) -> None:
    """All of this is about compiled code."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Failures repeat."""
    torch.manual_seed(0)


def assert_near(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Compares with a float32 reference, by the tolerance of the element type."""
    tolerance = TOLERANCES[dtype] * factor
    torch.testing.assert_close(got.float(), wanted, atol=tolerance, rtol=tolerance)
