"""Embedding rows between their arrival from an encoder and their prefill.

Decides who is asked to have an item delivered, which push gets room in the
byte budget, and which items must go for it. One rule of priority makes it free
of deadlocks: an item is worth as much as the oldest sequence that still needs
it (and, within a sequence, as early as it comes in the prompt); room goes to
the worthiest push, and only what is worth less may be evicted for it. So the
first unread item of the oldest sequence always finds room.

Knows keys, waiters, bytes and the messages that tell the engine where rows
are. Knows neither gRPC nor prompts; runs on one event loop and never waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NoReturn

from llm_service.embedding_item import StoredItem, Waiter, Want
from llm_service.embedding_push import Push
from llm_service.engine.messages import (
    CloseEmbeddings,
    EmbeddingRowsReady,
    OpenEmbeddings,
    ToEngine,
)
from llm_service.remembered_layouts import RememberedLayouts
from shared.embedding_arena import EmbeddingArena
from shared.errors import MediaTooLargeError, UnavailableError
from shared.families.base import MediaInfo
from shared.wire import TensorLayout


class EmbeddingStore:
    """All items that somebody wants or that are still here."""

    def __init__(
        self, arena: EmbeddingArena, budget: int, send: Callable[[ToEngine], None], clock: Callable[[], float]
    ) -> None:
        """Args:
        budget: most bytes in use at a time.
        send: tells the engine; whatever it drops, `engine_started` repeats.
        clock: monotonic seconds.
        """
        self.budget = budget
        self._arena = arena
        self._send = send
        self._clock = clock
        self._items: dict[str, StoredItem] = {}
        self._parked: list[Push] = []
        self._layouts = RememberedLayouts()
        self._uses = itertools.count()
        self._engine_runs = False

    @property
    def used_byte_count(self) -> int:
        """Bytes of the arena that items hold, those that are closing included."""
        return self._arena.used_byte_count

    # Waiters

    def layout(self, key: str) -> MediaInfo | None:
        """The item's layout, where it was ever announced and not forgotten."""
        return self._layouts.get(key)

    def want(self, waiter: Waiter, key: str, index: int) -> None:
        """Registers interest, and asks for the item where even its layout is unknown.

        Args:
            index: place of the item among those of the waiter's prompt; of several
                places the first one counts.
        """
        item = self._items.setdefault(key, StoredItem(key))
        item.wants.setdefault(waiter, Want(index))
        item.last_use = next(self._uses)
        if self.layout(key) is None:
            item.wants[waiter].missing = True
            self._ask(item)

    def need_rows(self, waiter: Waiter, keys: Iterable[str]) -> None:
        """The engine lacks rows for this waiter: asks for items that are not on their way."""
        for key in keys:
            item = self._items.get(key)
            if item is None or waiter not in item.wants:
                continue
            item.wants[waiter].needs = item.wants[waiter].missing = True
            self._ask(item)
        self._grant()

    def used(self, waiter: Waiter, key: str, next_index: int | None) -> None:
        """The waiter's prefill has passed the item, or has fallen back before it.

        Args:
            next_index: where in its prompt it needs the item next, or None.
        """
        item = self._items.get(key)
        if item is None or waiter not in item.wants:
            return
        want = item.wants[waiter]
        if next_index is None:
            want.needs = want.missing = False
        else:
            want.needs, want.index = True, next_index
        self._grant()

    def leave(self, waiter: Waiter, keys: Iterable[str]) -> None:
        """The waiter wants none of these items any more."""
        for key in keys:
            item = self._items.get(key)
            if item is None or item.wants.pop(waiter, None) is None:
                continue
            item.passed_over.discard(waiter)
            if item.asked is waiter:
                item.asked = None
            if item.wants:
                self._ask(item)
            elif item.push is not None and not item.push.complete:
                self._drop(item.push)
            self._forget_if_idle(item)
        self._grant()

    def ask_overdue(self, patience_s: float) -> None:
        """Asks again where an asked waiter has had nothing delivered for so long."""
        now = self._clock()
        for item in self._items.values():
            if item.asked is not None and item.push is None and now - item.asked_at > patience_s:
                item.passed_over.add(item.asked)
                item.asked = None
                self._ask(item)

    # Pushes

    def offer(self, key: str, info: MediaInfo, tensors: list[TensorLayout]) -> Push:
        """Takes a push's header. Its `granted` future tells whether rows are welcome.

        Raises:
            UnavailableError: the item contradicts what is known of it.
            MediaTooLargeError: it is larger than the whole budget.
        """
        push = Push(key, info, tensors)
        item = self._items.get(key)
        self._check_layout(item, info, key)
        if push.byte_count > self.budget:
            self._refuse(item, push)
        if item is None or not item.wants:
            # Nor is the layout remembered: nobody has asked for it.
            push.answer(False)
            return push
        self._remember(key, info, item)
        if item.push is not None:
            push.answer(False)
            return push
        item.push = push
        self._parked.append(push)
        self._grant()
        return push

    def write(self, push: Push, tensor_index: int, byte_offset: int, data: bytes | memoryview) -> None:
        """Takes a chunk; see `take`."""

        def copy(view: memoryview) -> None:
            view[:] = data

        self.take(push, tensor_index, byte_offset, len(data), copy)

    def take(
        self,
        push: Push,
        tensor_index: int,
        byte_offset: int,
        byte_count: int,
        fill: Callable[[memoryview], None],
    ) -> None:
        """Takes a chunk of a granted push; drops it where the item was evicted meanwhile.

        Args:
            fill: writes the chunk's bytes to where they belong.

        Raises:
            InvalidRequestError: the chunk does not continue its tensor.
        """
        start = push.accept(tensor_index, byte_offset, byte_count)
        if not push.open:
            return
        fill(self._arena.view(push.offset + start, byte_count))
        if push.advance():
            self._send(EmbeddingRowsReady(push.key, push.row_count))

    def finish(self, push: Push) -> bool:
        """Ends a push whose stream has ended. Returns whether the item is stored.

        Raises:
            InvalidRequestError: bytes are missing.
        """
        push.check_whole()
        if not push.open:
            return False
        item = self._items[push.key]
        item.asked = None
        item.passed_over.clear()
        item.last_use = next(self._uses)
        for want in item.wants.values():
            want.missing = False
        return True

    def discard(self, push: Push) -> None:
        """Lets go of a push that broke. A push that is whole or was never taken stays as it is."""
        item = self._items.get(push.key)
        if item is None or item.push is not push or push.complete:
            return
        self._drop(push)
        for want in item.wants.values():
            want.missing = want.needs
        self._ask(item)
        self._forget_if_idle(item)
        self._grant()

    # The engine

    def closed(self, key: str) -> None:
        """The engine reads the item no more: its memory goes back."""
        item = self._items.get(key)
        if item is not None and item.closing is not None:
            self._free(item)
            self._grant()

    def engine_started(self) -> None:
        """A fresh engine must be told of all items that are here."""
        self._engine_runs = True
        for item in self._items.values():
            if item.push is not None and item.push.open:
                self._announce(item.push)
        self._grant()

    def engine_lost(self) -> None:
        """No one reads the arena: what is closing is closed."""
        self._engine_runs = False
        for item in [item for item in self._items.values() if item.closing is not None]:
            self._free(item)
        self._grant()

    # Inside

    def _ask(self, item: StoredItem) -> None:
        """Asks the oldest waiter that lacks the item, where nobody was asked and nothing comes."""
        if item.asked is not None or item.push is not None:
            return
        lacking = [waiter for waiter, want in item.wants.items() if want.missing]
        if not lacking:
            return
        fresh = [waiter for waiter in lacking if waiter not in item.passed_over]
        if not fresh:
            item.passed_over.clear()
        item.asked = min(fresh or lacking, key=lambda waiter: waiter.age)
        item.asked_at = self._clock()
        item.asked.ask(item.key)

    def _check_layout(self, item: StoredItem | None, info: MediaInfo, key: str) -> None:
        known = self._layouts.get(key)
        relied_on = item is not None and (item.wants or item.push is not None)
        if relied_on and known is not None and known != info:
            # One of the two is wrong, or the encoder's settings have changed: the next
            # request learns the layout anew.
            self._layouts.forget(key)
            raise UnavailableError("the header's layout contradicts the item's known one; ask again")

    def _refuse(self, item: StoredItem | None, push: Push) -> NoReturn:
        error = MediaTooLargeError(
            f"an item of {push.byte_count} bytes exceeds the embedding store of {self.budget} bytes",
            param="header.tensors",
        )
        for waiter in list(item.wants) if item is not None else ():
            waiter.fail(error)
        raise error

    def _remember(self, key: str, info: MediaInfo, item: StoredItem) -> None:
        self._layouts.remember(key, info)
        for waiter in list(item.wants):
            waiter.layout_known(key)

    def _grant(self) -> None:
        """Gives room to parked pushes, the worthiest first, as far as there is any."""
        while self._parked:
            push = min(self._parked, key=lambda parked: self._items[parked.key].worth)
            item = self._items[push.key]
            offset = None
            if item.closing is None and self.used_byte_count + push.byte_count <= self.budget:
                offset = self._arena.allocate(push.byte_count)
            if offset is not None:
                self._parked.remove(push)
                push.open_at(offset)
                self._announce(push)
                push.answer(True)
            elif not self._make_room(item, push):
                return

    def _announce(self, push: Push) -> None:
        if self._engine_runs:
            self._send(OpenEmbeddings(push.key, push.arena_tensors()))
            if push.row_count:
                self._send(EmbeddingRowsReady(push.key, push.row_count))

    def _make_room(self, item: StoredItem, push: Push) -> bool:
        """Starts to close items that are worth less, if that makes room enough.

        Room that is being made already counts: one push's victims are not
        followed by more while the engine lets go of them.

        Returns:
            Whether there is more room at once, as no engine reads the victims.
        """
        closing = sum(i.closing_byte_count for i in self._items.values() if i.closing is not None)
        lacking = self.used_byte_count - closing + push.byte_count - self.budget
        victims: list[Push] = []
        for victim in sorted(self._items.values(), key=StoredItem.eviction_order):
            held = victim.push
            if lacking <= 0:
                break
            if held is not None and held.open and victim.worth > item.worth:
                victims.append(held)
                lacking -= held.byte_count
        if lacking > 0 or not victims:
            return False
        for held in victims:
            self._drop(held)
        return not self._engine_runs

    def _drop(self, push: Push) -> None:
        """Takes a push's room away, or its place in the queue."""
        item = self._items[push.key]
        assert item.push is push
        item.push = item.asked = None
        if push in self._parked:
            self._parked.remove(push)
            push.answer(False)
            return
        push.open = False
        item.closing, item.closing_byte_count = push.offset, push.byte_count
        if self._engine_runs:
            self._send(CloseEmbeddings(push.key))
        else:
            self._free(item)

    def _free(self, item: StoredItem) -> None:
        """Gives the memory of a closed item back."""
        assert item.closing is not None
        self._arena.free(item.closing)
        item.closing = None
        self._forget_if_idle(item)

    def _forget_if_idle(self, item: StoredItem) -> None:
        if not item.wants and item.push is None and item.closing is None:
            self._items.pop(item.key, None)
