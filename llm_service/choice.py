"""One choice of a request: a sequence in the engine and a waiter in the store.

Turns their news into the request's news. Knows its own sequence; does not know
the call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llm_service.choice_text import ChoiceText
from llm_service.engine.messages import AddSequence, PrefillReport, RowsUsed, SequenceRefused, TokenReport
from shared.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    PerceptError,
    UnavailableError,
)

if TYPE_CHECKING:
    from llm_service.embedding_store import EmbeddingStore
    from llm_service.engine_client import EngineClient

logger = logging.getLogger(__name__)


class RequestNews:
    """What a request's call is to tell its caller next.

    Attributes:
        needed: keys of items to be delivered, in order, each once.
        failure: ends the request.
        wake: called after every change.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.needed: dict[str, None] = {}
        self.failure: PerceptError | None = None
        self.wake = wake

    def fail(self, error: PerceptError) -> None:
        """Ends the request; the first failure counts."""
        self.failure = self.failure or error
        self.wake()


class Choice:
    """One completion of a request.

    Attributes:
        age: of its request, then its index: sorts waiters.
        text: what it has generated.
        prefill: what the engine told with the first token, or None before.
        prefilled: called once, with the first token.
        told: whether the caller was told of its end.
    """

    def __init__(
        self,
        age: tuple[int, int],
        keys: Sequence[str],
        text: ChoiceText,
        news: RequestNews,
        engine: EngineClient,
        store: EmbeddingStore,
    ) -> None:
        """Args:
        keys: of the prompt's items, in order; the same one may come twice.
        """
        self.age = age
        self.text = text
        self.prefill: PrefillReport | None = None
        self.prefilled: Callable[[], None] = lambda: None
        self.told = False
        self._first_token_at = 0.0
        self._last_token_at = 0.0
        self._keys = keys
        self._news = news
        self._engine = engine
        self._store = store
        self._sequence_id: int | None = None
        self._item_of_span: Sequence[int] = ()

    @property
    def index(self) -> int:
        """Which choice of its request, from 0."""
        return self.age[1]

    @property
    def decode_seconds(self) -> float:
        """From the first to the last token so far."""
        return self._last_token_at - self._first_token_at

    def want_media(self) -> None:
        """Registers with the store; it asks at once for items whose layout is unknown."""
        for index, key in enumerate(self._keys):
            self._store.want(self, key, index)

    def start(self, message: AddSequence, item_of_span: Sequence[int]) -> None:
        """Hands the sequence to the engine.

        Args:
            item_of_span: index of the item that fills each span of the message.

        Raises:
            UnavailableError: there is no engine right now.
        """
        self._sequence_id = message.sequence_id
        self._item_of_span = item_of_span
        self._engine.add(message, self)

    def close(self) -> None:
        """Frees all that the choice holds; safe at any time, more than once."""
        if self._sequence_id is not None:
            self._engine.cancel(self._sequence_id)
        self._store.leave(self, self._keys)

    # What the store tells

    def ask(self, key: str) -> None:
        """Have the item delivered."""
        self._news.needed[key] = None
        self._news.wake()

    def layout_known(self, key: str) -> None:
        """An item's layout can be asked for now."""
        self._news.wake()

    def fail(self, error: PerceptError) -> None:
        """An item can never be had."""
        self._news.fail(error)

    # What the engine tells

    def token_came(self, report: TokenReport) -> None:
        """Takes the next token; one after a stop string is late and dropped."""
        if self.text.ending is not None:
            return
        self._last_token_at = time.monotonic()
        try:
            complete = self.text.add(report)
        except InternalError as error:
            self._news.fail(error)
            return
        if report.first is not None:
            self.prefill = report.first
            self._first_token_at = self._last_token_at
            self.prefilled()
        if complete:
            self.close()
        self._news.wake()

    def rows_needed(self, keys: list[str]) -> None:
        """The engine lacks rows."""
        self._store.need_rows(self, keys)

    def rows_used(self, message: RowsUsed) -> None:
        """The prefill has passed an item, or a preemption has undone that."""
        next_span = message.next_span
        next_index = None if next_span is None else self._item_of_span[next_span]
        self._store.used(self, message.key, next_index)

    def refused(self, message: SequenceRefused) -> None:
        """The sequence can never run."""
        if message.reason == "context_length":
            self._news.fail(ContextLengthError(message.text, param="prompt"))
        else:
            self._news.fail(InvalidRequestError(message.text, param="media"))

    def failed(self, text: str) -> None:
        """The engine had a bug in this sequence, and logged it."""
        logger.error("sequence %s failed in the engine: %s", self._sequence_id, text)
        self._news.fail(InternalError("the engine failed on this request; the log says why"))

    def engine_lost(self) -> None:
        """The engine process ended."""
        self._news.fail(UnavailableError("the engine process ended; it is being restarted"))
