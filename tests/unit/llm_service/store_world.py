"""A small world around the embedding store: callers, encoders and an engine, one step at a time.

Every step is one thing that can happen in the real world; a test chooses the
order. Messages between store and engine wait in queues, both ways, as on a
socket. Rows are real bytes in a real arena.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from llm_service.embedding_push import Push
from llm_service.embedding_store import EmbeddingStore
from llm_service.engine.messages import (
    ArenaTensor,
    CloseEmbeddings,
    EmbeddingRowsReady,
    OpenEmbeddings,
    ToEngine,
)
from shared.embedding_arena import EmbeddingArena
from shared.errors import PerceptError
from shared.families.base import MediaInfo
from shared.wire import TensorLayout

ROW_BYTES = 4096
"""Bytes of a row: a page of the arena, so that rows and budget count alike."""

Action = Callable[[], None]


@dataclass(eq=False)
class Caller:
    """A sequence, and the caller behind it who has items delivered."""

    age: tuple[int, int]
    keys: list[str]
    asked: list[str] = field(default_factory=list)
    failure: PerceptError | None = None
    in_engine: bool = False
    used_count: int = 0

    def ask(self, key: str) -> None:
        self.asked.append(key)

    def layout_known(self, key: str) -> None:
        """The world looks for itself."""

    def fail(self, error: PerceptError) -> None:
        self.failure = error

    @property
    def done(self) -> bool:
        return self.in_engine and self.used_count == len(self.keys)

    @property
    def unused_keys(self) -> list[str]:
        return list(dict.fromkeys(self.keys[self.used_count :]))


def key_of(number: int) -> str:
    return f"{number:064x}"


def layout_of(row_count: int) -> tuple[MediaInfo, list[TensorLayout]]:
    return MediaInfo(row_count), [TensorLayout("embeds", "float32", (row_count, ROW_BYTES // 4))]


class World:
    """The store with everybody who talks to it."""

    def __init__(self, budget_rows: int, row_counts: dict[str, int]) -> None:
        self.now = 0.0
        self.callers: list[Caller] = []
        self.sent_rows: dict[Push, int] = {}
        self.opened: dict[str, tuple[ArenaTensor, int]] = {}
        self.ask_count = 0
        self._row_counts = row_counts
        self._to_engine: deque[ToEngine] = deque()
        self._to_front: deque[Action] = deque()
        self.arena = EmbeddingArena.create(budget_rows * ROW_BYTES * 8)
        budget = budget_rows * ROW_BYTES
        self.store = EmbeddingStore(self.arena, budget, self._to_engine.append, lambda: self.now)
        self.store.engine_started()

    def actions(self) -> list[Action]:
        """Everything that can happen next."""
        found: list[Action] = []
        if self._to_engine:
            found.append(lambda: self._engine_hears(self._to_engine.popleft()))
        if self._to_front:
            found.append(self._front_hears)
        found += [partial(self.serve, push) for push in self.sent_rows if push.granted.done()]
        for caller in self.callers:
            found += self._actions_of(caller)
        return found

    def _actions_of(self, caller: Caller) -> list[Action]:
        found: list[Action] = []
        if caller.asked:
            found.append(lambda: self.start_push(caller.asked.pop(0)))
        if not caller.in_engine and all(self.store.layout(key) for key in caller.keys):
            found.append(partial(self._enter_engine, caller))
        if caller.in_engine and not caller.done and self._is_whole(caller.keys[caller.used_count]):
            found.append(partial(self._prefill, caller))
        if caller.done:
            found.append(partial(self.leave, caller))
        return found

    # Callers and encoders

    def arrive(self, caller: Caller) -> None:
        self.callers.append(caller)
        for index, key in enumerate(caller.keys):
            self.store.want(caller, key, index)

    def leave(self, caller: Caller) -> None:
        """The caller has its answer, or has lost patience."""
        self.callers.remove(caller)
        self.store.leave(caller, caller.keys)

    def start_push(self, key: str) -> Push:
        push = self.store.offer(key, *layout_of(self._row_counts[key]))
        self.sent_rows[push] = 0
        return push

    def serve(self, push: Push) -> None:
        """Sends a push's next row, or drains it; ends it after the last one."""
        if push.granted.result():
            sent = self.sent_rows[push]
            self.store.write(push, 0, sent * ROW_BYTES, push.key[-1].encode() * ROW_BYTES)
            self.sent_rows[push] = sent + 1
            if sent + 1 < push.info.row_count:
                return
            self.store.finish(push)
        self.end_push(push)

    def end_push(self, push: Push) -> None:
        """The stream is over, for whatever reason."""
        del self.sent_rows[push]
        self.store.discard(push)

    def _front_hears(self) -> None:
        self._to_front.popleft()()

    # The engine

    def lose_engine(self) -> None:
        """The engine dies, and with it all requests; another one starts."""
        self.store.engine_lost()
        for caller in list(self.callers):
            self.leave(caller)
        self.opened.clear()
        self._to_engine.clear()
        self._to_front.clear()
        self.store.engine_started()

    def _enter_engine(self, caller: Caller) -> None:
        caller.in_engine = True
        self._to_engine.append(self._admission(caller))  # type: ignore[arg-type]

    def _admission(self, caller: Caller) -> Action:
        return lambda: self._say_needed(caller, caller.unused_keys)

    def _engine_hears(self, message: ToEngine | Action) -> None:
        match message:
            case OpenEmbeddings(key, tensors):
                assert key not in self.opened
                self.opened[key] = (tensors[0], 0)
            case EmbeddingRowsReady(key, row_count):
                if key in self.opened:
                    self.opened[key] = (self.opened[key][0], row_count)
            case CloseEmbeddings(key):
                del self.opened[key]
                for caller in self.callers:
                    if caller.in_engine:
                        self._say_needed(caller, [k for k in caller.unused_keys if k == key])
                self._to_front.append(lambda: self.store.closed(key))
            case _:
                assert callable(message)
                message()

    def _say_needed(self, caller: Caller, keys: list[str]) -> None:
        lacking = [key for key in keys if key not in self.opened]
        if lacking:
            self._to_front.append(lambda: self.store.need_rows(caller, lacking))

    def _is_whole(self, key: str) -> bool:
        return key in self.opened and self.opened[key][1] == self._row_counts[key]

    def _prefill(self, caller: Caller) -> None:
        """Reads all rows of the caller's next item."""
        key = caller.keys[caller.used_count]
        tensor, row_count = self.opened[key]
        rows = bytes(self.arena.view(tensor.offset, row_count * ROW_BYTES))
        assert rows == key[-1].encode() * len(rows), "rows of another item"
        caller.used_count += 1
        places = [i for i, k in enumerate(caller.keys) if k == key and i >= caller.used_count]
        next_index = places[0] if places else None
        self._to_front.append(lambda: self.store.used(caller, key, next_index))

    def preempt(self, caller: Caller) -> None:
        """The engine forgets what the sequence has prefilled, and asks again."""
        caller.used_count = 0
        for key in caller.unused_keys:
            first = caller.keys.index(key)
            self._to_front.append(partial(self.store.used, caller, key, first))
        self._say_needed(caller, caller.unused_keys)
