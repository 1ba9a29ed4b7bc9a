"""What steps gave, gathered until it is due to be told.

Most callers show each token when it comes. Where one shows nothing before the end, each
message costs the front and whoever is behind it a wake-up, and the next step a core: such
tokens wait for company.

Knows when news are due. Does not know how they travel.
"""

from __future__ import annotations

from llm_service.engine.messages import RowsUsed, TokenReport

MAX_HELD_STEPS = 64
MAX_HELD_S = 0.1
"""Tokens that nobody waits for are told with the first step that is past one of these,
in steps and in seconds after the first of them came."""

News = tuple[list[TokenReport], list[int], list[RowsUsed]]
"""Tokens, sequences that ended, items that were used: the fields of a `StepReport`."""


class PendingReport:
    """News of the engine that the front has not heard yet."""

    def __init__(self) -> None:
        self._tokens: list[TokenReport] = []
        self._ended: list[int] = []
        self._urgent = False
        self._held_steps = 0
        self._held_since = 0.0

    def token(self, report: TokenReport, now: float, *, may_wait: bool) -> None:
        """Adds a token. A sequence's first and last never wait.

        Args:
            now: monotonic seconds.
        """
        if not self._tokens:
            self._held_since = now
        self._tokens.append(report)
        if not may_wait or report.first is not None or report.finish is not None:
            self._urgent = True

    def ended(self, sequence_id: int) -> None:
        """Adds an end, which never waits."""
        self._ended.append(sequence_id)
        self._urgent = True

    def take(self, used: list[RowsUsed], now: float, *, ran: bool) -> News | None:
        """What is to be told after a step, or None.

        Args:
            used: items that the step has used; told at once.
            now: monotonic seconds.
            ran: whether the step had anything to do; without, nothing new comes that could be waited for.
        """
        if not (self._urgent or used) and self._may_wait(now, ran):
            self._held_steps += 1
            return None
        if not (ran or self._tokens or self._ended or used):
            return None
        news = self._tokens, self._ended, used
        self._tokens, self._ended = [], []
        self._urgent, self._held_steps = False, 0
        return news

    def _may_wait(self, now: float, ran: bool) -> bool:
        """Whether there are tokens and all of them may wait for the next step's."""
        held = bool(self._tokens) and self._held_steps < MAX_HELD_STEPS - 1
        return ran and held and now - self._held_since < MAX_HELD_S
