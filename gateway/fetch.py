"""Fetches media by URL without becoming a door into the network behind the gateway.

A URL is parsed once, and what was parsed is what is fetched. The host is resolved
once for each connection, every address is checked, and the connection goes to a
checked address: name, Host header and TLS name stay those of the URL. Each
redirect passes the same checks.

Knows http and https. Does not know what the bytes are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpcore
import httpx

from gateway.addresses import IpAddress, is_public
from gateway.budget import Take
from shared.errors import MediaFetchError, MediaTooLargeError, OverloadedError, PerceptError

Resolver = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
"""Resolves a host name and port to addresses; raises OSError."""

_MAX_REDIRECTS = 5
_MAX_URL_LENGTH = 8192
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Threads of their own: a name server that keeps silent holds up no other work.
_LOOK_UPS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="media-look-up")
_FORBIDDEN = frozenset("\\ \t\r\n") | {chr(code) for code in range(0x20)} | {"\x7f"}


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What one media file may take.

    Attributes:
        max_byte_count: of the file.
        timeout_s: for fetching it, redirects included, in seconds.
    """

    max_byte_count: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a fetch may reach and take.

    Attributes:
        timeout_s: for one URL, redirects included, in seconds, where its caller says nothing.
        max_byte_count: of the answer's body, likewise.
        domains: host names that are allowed; empty for any.
        private: whether addresses that are not public may be reached.
        concurrency: fetches at once; further ones wait.
    """

    timeout_s: float
    max_byte_count: int
    domains: frozenset[str] = frozenset()
    private: bool = False
    concurrency: int = 64


async def resolve(host: str, port: int) -> Sequence[IpAddress]:
    """Resolves with the system's resolver, off the event loop, in one of a few threads."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_LOOK_UPS, look_up)
    return [ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only, and to the very ones that were checked."""

    def __init__(self, resolver: Resolver, private: bool) -> None:
        self._resolver = resolver
        self._private = private
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of the library
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        fault: Exception | None = None
        for address in await self._addresses(host, port):
            try:
                return await self._sockets.connect_tcp(str(address), port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise MediaFetchError("The media URL's host could not be reached.") from fault

    async def _addresses(self, host: str, port: int) -> list[IpAddress]:
        try:
            addresses = list(dict.fromkeys(await self._resolver(host.strip("[]"), port)))
        except (OSError, UnicodeError, ValueError) as error:
            raise MediaFetchError("The media URL's host name could not be resolved.") from error
        if not addresses:
            raise MediaFetchError("The media URL's host name could not be resolved.")
        # One forbidden address among several is enough: a name that mixes them
        # is how a rebinding attack looks.
        if not self._private and not all(is_public(address) for address in addresses):
            raise _not_allowed()
        return addresses

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Fetcher:
    """Fetches URLs under limits. One for the process; close it at the end."""

    def __init__(self, limits: FetchLimits, resolver: Resolver = resolve) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.concurrency)
        # No connection is kept: a kept one would skip the next check of its name.
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=limits.concurrency,
            max_keepalive_connections=0,
            network_backend=_CheckedBackend(resolver, limits.private),
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._pool.aclose()

    async def fetch(self, url: str, take: Take, source: SourceLimits | None = None) -> bytes:
        """Returns the body behind a URL.

        Args:
            take: told of the bytes of each piece before it is kept.
            source: what this one may take; default: what all may.

        Raises:
            MediaFetchError: the URL, its host, its answer or its speed is not acceptable.
            MediaTooLargeError: the body is over the limit.
            OverloadedError: so many fetches are under way that this one could not start in time.
        """
        source = source or SourceLimits(self._limits.max_byte_count, self._limits.timeout_s)
        async with self._place():
            try:
                async with asyncio.timeout(source.timeout_s):
                    return await self._follow(self._parse(url), take, source.max_byte_count)
            except TimeoutError:
                raise MediaFetchError(
                    f"The media URL did not answer within {source.timeout_s:g} s.",
                    code="media_fetch_timeout",
                ) from None
            except (*_BROKEN, OSError) as error:
                raise MediaFetchError("The media URL's host broke off the connection.") from error

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise OverloadedError("The server is fetching as many media files as it can.") from None
        try:
            yield
        finally:
            self._places.release()

    async def _follow(self, url: httpx.URL, take: Take, limit: int) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await self._get(url, take, limit)
            if isinstance(answer, bytes):
                return answer
            url = self._parse(_joined(url, answer.location))
        raise MediaFetchError("The media URL redirects too often.")

    def _parse(self, text: str) -> httpx.URL:
        """Parses and checks everything that needs no look-up."""
        if len(text) > _MAX_URL_LENGTH or _FORBIDDEN.intersection(text):
            raise MediaFetchError("The media URL is malformed.")
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise MediaFetchError("The media URL is malformed.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise MediaFetchError("The media URL must be an http or https URL with a host.")
        if url.userinfo:
            raise MediaFetchError("The media URL must not contain a user name or password.")
        if self._limits.domains and url.host.lower() not in self._limits.domains:
            raise _not_allowed()
        return url

    async def _get(self, url: httpx.URL, take: Take, limit: int) -> bytes | _Redirect:
        headers = [
            (b"Host", url.netloc),
            (b"Accept", b"image/*,video/*,*/*;q=0.5"),
            # A compressed answer would pass the size limit and then grow.
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"percept"),
        ]
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path or b"/"
        )
        async with self._pool.stream("GET", target, headers=headers) as response:
            fields = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                return _Redirect(fields.get(b"location", b"").decode("latin-1"))
            _check_answer(response.status, fields)
            return await _read(response, fields, take, limit)


async def _read(response: httpcore.Response, fields: dict[bytes, bytes], take: Take, limit: int) -> bytes:
    declared = fields.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in response.aiter_stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        take(len(chunk))
        body += chunk
    return bytes(body)


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _joined(url: httpx.URL, location: str) -> str:
    if not location or _FORBIDDEN.intersection(location):
        raise MediaFetchError("The media URL redirects to a malformed address.")
    try:
        return str(url.join(location))
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise MediaFetchError("The media URL redirects to a malformed address.") from error


def _check_answer(status: int, fields: dict[bytes, bytes]) -> None:
    if status != 200:
        raise MediaFetchError(f"The media URL answered with HTTP status {status}.")
    if fields.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise MediaFetchError("The media URL answered with a content encoding that is not accepted.")


def _too_large(limit: int) -> PerceptError:
    return MediaTooLargeError(f"The media file is larger than {limit} bytes.")


def _not_allowed() -> MediaFetchError:
    """The same for every reason, so that nobody learns which addresses a name has."""
    return MediaFetchError(
        "The media URL's host is not allowed (see --allowed-media-domains and --allow-private-media).",
        code="media_host_not_allowed",
    )
