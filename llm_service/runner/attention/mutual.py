"""Spans whose tokens see each other in both directions, in the middle of causal attention.

Knows that a token of such a span sees as far as the span's last token, and no
token before its window. Such a span is never cut by a chunk, so a chunk's own
tokens are all that its tokens see beyond the causal ones. Backends that know
causal attention alone leave steps with such spans to the reference.
"""

from __future__ import annotations

from llm_service.runner.attention.context import AttentionBackend, StepAttention, StepShape
from llm_service.runner.attention.sdpa import SdpaBackend
from llm_service.runner.kv_cache import KvCache


class MutualSpans:
    """A backend that has the reference compute the steps that have such spans.

    Attributes:
        name: that of the backend for all other steps, decoding above all.
    """

    def __init__(self, causal: AttentionBackend) -> None:
        self.name = causal.name
        self._causal = causal
        self._reference = SdpaBackend()

    def plan(self, cache: KvCache, shape: StepShape) -> StepAttention:
        """See `AttentionBackend`."""
        return (self._reference if shape.mutual else self._causal).plan(cache, shape)
