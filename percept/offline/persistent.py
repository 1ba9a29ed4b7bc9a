"""Requests to a gateway that are tried again while it is full or away.

Knows HTTP's side of it: what is tried again and when to give up. Does not know what is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import httpx

from percept.gateway_url import gateway_url

_CONNECT_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 60.0
_FIRST_PAUSE_S = 0.25
_MAX_ABSENCES = 8
"""Tries of a request while nobody answers, pauses doubling: about a minute."""

_MAX_BREAKS = 3
"""Tries of a request whose connection is broken off each time: it may be the request's own doing."""

BROKEN_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""Ends of a connection that there was."""


class GatewayGoneError(Exception):
    """Nobody answers any more. What is done stays done; the same command goes on from there."""


class BrokenOffError(Exception):
    """The gateway is there, but broke off the connection of this request each time."""


def broken_off(fault: Exception) -> str:
    """What one of `BROKEN_OFF` says to people."""
    reason = f" ({fault})" if str(fault) else ""
    return f"the connection was broken off{reason}; is the file too large, or did the gateway end?"


async def answered(http: httpx.AsyncClient, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer, after as many tries as it takes: a full gateway says when to come back.

    Args:
        ask: sends the request once.

    Raises:
        GatewayGoneError: nobody answers.
        BrokenOffError: somebody is there, but this request gets no answer.
        httpx.TimeoutException: the answer did not come in time.
    """
    absences = breaks = 0
    while True:
        try:
            response = await ask()
        except httpx.ConnectTimeout as error:
            fault: Exception = error
        except httpx.TimeoutException:
            raise
        except BROKEN_OFF as error:
            breaks += 1
            if breaks >= _MAX_BREAKS:
                raise BrokenOffError(broken_off(error)) from error
            fault = error
        except httpx.TransportError as error:
            fault = error
        else:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                await _pause(_retry_after(response))
                continue
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            fault = GatewayGoneError(message_of(response))
        absences += 1
        if absences >= _MAX_ABSENCES:
            raise GatewayGoneError(f"{http.base_url}: {fault}") from fault
        await _pause(_FIRST_PAUSE_S * 2**absences)


async def _pause(seconds: float) -> None:
    # Apart from each other, so that they do not all come back at once.
    await asyncio.sleep(min(seconds, _LONGEST_PAUSE_S) * random.uniform(1.0, 1.5))


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def message_of(response: httpx.Response) -> str:
    """What a refusal says."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


def open_http(url: str, api_key: str | None, timeout_s: float, concurrency: int) -> httpx.AsyncClient:
    """A client of the gateway at `url`.

    Args:
        timeout_s: longest silence before an answer, in seconds.
    """
    return httpx.AsyncClient(
        base_url=gateway_url(url),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        trust_env=False,
    )
