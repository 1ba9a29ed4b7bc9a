"""How sure the model is of one answer, gathered from its tokens.

Knows the engine's reports and the wire's message. Does not judge.
"""

from __future__ import annotations

from llm_service.engine.messages import TokenReport
from protos.llm.v1 import llm_service_pb2 as pb


class AnswerMeasures:
    """Gathers the measures of one choice."""

    def __init__(self, filled_in: int) -> None:
        """Args:
        filled_in: tokens at the answer's beginning that do not count.
        """
        self._skipped = filled_in
        self._sum = 0.0
        self._count = 0
        self._silence: float | None = None

    def add(self, report: TokenReport) -> None:
        """Takes the next token's."""
        if report.silence is not None:
            self._silence = report.silence
        if self._skipped:
            self._skipped -= 1
        elif report.allowed_logprob is not None:
            self._sum += report.allowed_logprob
            self._count += 1

    def message(self) -> pb.SpeechMeasures:
        """What the wire says of them."""
        return pb.SpeechMeasures(
            no_speech_probability=self._silence, mean_logprob=self._sum / max(1, self._count)
        )
