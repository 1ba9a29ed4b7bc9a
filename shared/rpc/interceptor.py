"""Turns every exception of a servicer into the call's status, and bounds its time.

Knows the four shapes of gRPC methods. Does not know any service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from shared.rpc.status import to_status, to_typed

_OWN_PREFIX = "/protos."


def remaining_s(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> float:
    """Seconds that a call has left: its own deadline's, or `default_s` where it has none."""
    remaining = context.time_remaining()
    return default_s if remaining is None else max(remaining, 0.0)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of our own services; health and reflection stay as they are."""

    def __init__(self, default_deadline_s: float) -> None:
        self._default_deadline_s = default_deadline_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's entry with our wrapper around its behaviour."""
        entry = await continuation(handler_call_details)
        if entry is None or not handler_call_details.method.startswith(_OWN_PREFIX):
            return entry
        if entry.response_streaming:
            behaviour = self._wrap_streaming(entry.stream_stream or entry.unary_stream)
        else:
            behaviour = self._wrap_unary(entry.stream_unary or entry.unary_unary)
        return _method_entry(entry)(
            behaviour,
            request_deserializer=entry.request_deserializer,
            response_serializer=entry.response_serializer,
        )

    def _wrap_unary(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                async with asyncio.timeout(remaining_s(context, self._default_deadline_s)):
                    return await behaviour(request, context)
            except asyncio.CancelledError:
                raise
            except Exception as fault:
                await _end(context, fault)

        return call

    def _wrap_streaming(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            answers = behaviour(request, context)
            try:
                async with asyncio.timeout(remaining_s(context, self._default_deadline_s)):
                    async for answer in answers:
                        yield answer
            except asyncio.CancelledError:
                raise
            except Exception as fault:
                await _end(context, fault)
            finally:
                await answers.aclose()  # type: ignore[attr-defined]

        return call


async def _end(context: grpc.aio.ServicerContext[Any, Any], fault: Exception) -> NoReturn:
    """Ends the call with the fault's status. A status that was set already stays."""
    if isinstance(fault, grpc.aio.AbortError):
        raise fault
    await context.abort_with_status(to_status(to_typed(fault)))
    raise AssertionError("abort_with_status returned")


def _method_entry(entry: Any) -> Callable[..., Any]:
    if entry.request_streaming:
        return (
            grpc.stream_stream_rpc_method_handler
            if entry.response_streaming
            else (grpc.stream_unary_rpc_method_handler)
        )
    return (
        grpc.unary_stream_rpc_method_handler
        if entry.response_streaming
        else (grpc.unary_unary_rpc_method_handler)
    )
