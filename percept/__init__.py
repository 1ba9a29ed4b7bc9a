"""The command line and the Python client: starts, calls and measures the services.

    from percept import Client, SamplingParams

The client's names are found when they are asked for: importing this package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from percept.client import AsyncClient, Client, Embeddings, PerceptError, SamplingParams, read_answer

__all__ = ["AsyncClient", "Client", "Embeddings", "PerceptError", "SamplingParams", "read_answer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from percept import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted(__all__)
