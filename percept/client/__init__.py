"""The Python client: prompts, chats and embeddings over gRPC, straight to the services.

Knows the services' contract and imports none of them. Needs neither torch nor
transformers; NumPy and Pillow where values of theirs are given or embeddings asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from percept.client.answers import (
    Alternative,
    Answer,
    Completion,
    Delta,
    Timings,
    TokenLogprob,
    Usage,
)
from percept.client.async_client import AsyncClient
from percept.client.sampling import SamplingParams
from percept.client.served import ServedModel
from percept.client.stream import DeltaStream
from percept.client.sync_client import Client
from percept.client.transcript import Transcript
from percept.client.transcript_stream import TranscriptDelta, TranscriptStream
from shared.errors import PerceptError

if TYPE_CHECKING:
    from percept.client.embeddings import Embeddings
    from shared.families.florence2_answers import read_answer

__all__ = [
    "Alternative",
    "Answer",
    "AsyncClient",
    "Client",
    "Completion",
    "Delta",
    "DeltaStream",
    "Embeddings",
    "PerceptError",
    "SamplingParams",
    "ServedModel",
    "Timings",
    "TokenLogprob",
    "Transcript",
    "TranscriptDelta",
    "TranscriptStream",
    "Usage",
    "read_answer",
]


def __getattr__(name: str) -> Any:
    if name == "Embeddings":  # Needs NumPy.
        from percept.client.embeddings import Embeddings

        return Embeddings
    if name == "read_answer":  # Needs NumPy too.
        from shared.families.florence2_answers import read_answer

        return read_answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
