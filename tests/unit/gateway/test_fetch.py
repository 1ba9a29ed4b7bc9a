"""Which addresses media may come from, and what a fetch takes.

Servers are on loopback; other addresses exist only in the injected resolver, and
no connection is ever opened to one of them.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from gateway.addresses import IpAddress, is_public
from gateway.fetch import Fetcher, FetchLimits, Resolver, resolve
from shared.errors import MediaFetchError, MediaTooLargeError, OverloadedError


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "193.0.0.1", "2606:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def free(byte_count: int) -> None:
    """A budget without an end."""


class Origin:
    """A web server on loopback that answers paths with prepared bytes."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.heads: list[str] = []
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Origin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        answer = self.answers.get(head.split(" ")[1])
        try:
            if answer is None:
                await asyncio.sleep(30)
            else:
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def names(**hosts: Sequence[str]) -> Resolver:
    """Resolves `name.example` from the given table, and nothing else."""

    async def resolve(host: str, port: int) -> Sequence[IpAddress]:
        known = {f"{name}.example": addresses for name, addresses in hosts.items()}
        if host not in known:
            raise OSError("no such name")
        return [ip_address(address) for address in known[host]]

    return resolve


@asynccontextmanager
async def fetching(resolver: Resolver, **limits: object) -> AsyncIterator[Fetcher]:
    full = {"timeout_s": 2.0, "max_byte_count": 1000, "private": True, **limits}
    fetcher = Fetcher(FetchLimits(**full), resolver)  # type: ignore[arg-type]
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def test_fetches_by_name_from_the_checked_address() -> None:
    origin = Origin({"/a.png?b=c": ok(b"picture")})
    async with origin.running(), fetching(names(site=["127.0.0.1"])) as fetcher:
        assert await fetcher.fetch(f"http://site.example:{origin.port}/a.png?b=c#d", free) == b"picture"
        assert f"Host: site.example:{origin.port}\r\n" in origin.heads[0]


async def test_private_addresses_are_refused_by_default() -> None:
    origin = Origin({"/": ok(b"secret")})
    resolver = names(inside=["127.0.0.1"], mixed=["93.184.216.34", "127.0.0.1"], ten=["10.0.0.1"], none=[])
    async with origin.running(), fetching(resolver, private=False) as fetcher:
        for host in ("inside", "mixed", "ten"):
            with pytest.raises(MediaFetchError, match="not allowed"):
                await fetcher.fetch(f"http://{host}.example:{origin.port}/", free)
        with pytest.raises(MediaFetchError, match="resolved"):
            await fetcher.fetch("http://none.example/", free)
        with pytest.raises(MediaFetchError, match="resolved"):
            await fetcher.fetch("http://other.example/", free)
        assert origin.heads == []


async def test_each_connection_resolves_and_checks_anew() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[IpAddress]:
        asked.append(host)
        if len(asked) == 1:
            return [ip_address("127.0.0.1")]
        # From now on loopback is forbidden again, as it is by default.
        fetcher._pool._network_backend._private = False  # type: ignore[attr-defined]
        return [ip_address("127.0.0.1")]

    origin = Origin({"/": moved("/next"), "/next": ok(b"secret")})
    async with origin.running(), fetching(rebinding) as fetcher:
        with pytest.raises(MediaFetchError, match="not allowed"):
            await fetcher.fetch(f"http://site.example:{origin.port}/", free)
        assert asked == ["site.example", "site.example"]
        assert len(origin.heads) == 1


async def test_redirects_are_checked_like_urls() -> None:
    origin = Origin(
        {
            "/scheme": moved("file:///etc/passwd"),
            "/user": moved("http://a:b@site.example/"),
            "/host": moved("http://other.example/"),
            "/slash": moved("http://site.example\\@other.example/"),
            "/empty": moved(""),
            "/loop": moved("/loop"),
            "/good": moved("//site.example:PORT/end"),
            "/end": ok(b"picture"),
        }
    )
    resolver = names(site=["127.0.0.1"], other=["127.0.0.1"])
    async with origin.running(), fetching(resolver, domains=frozenset({"site.example"})) as fetcher:
        origin.answers["/good"] = moved(f"//site.example:{origin.port}/end")
        base = f"http://site.example:{origin.port}"
        for path in ("/scheme", "/user", "/host", "/slash", "/empty", "/loop"):
            with pytest.raises(MediaFetchError):
                await fetcher.fetch(base + path, free)
        assert await fetcher.fetch(base + "/good", free) == b"picture"


async def test_domains_are_exact() -> None:
    resolver = names(site=["127.0.0.1"], **{"sub.site": ["127.0.0.1"]})
    origin = Origin({"/": ok(b"picture")})
    async with origin.running(), fetching(resolver, domains=frozenset({"site.example"})) as fetcher:
        assert await fetcher.fetch(f"http://SITE.example:{origin.port}/", free) == b"picture"
        with pytest.raises(MediaFetchError, match="not allowed") as caught:
            await fetcher.fetch(f"http://sub.site.example:{origin.port}/", free)
        assert "site.example" not in caught.value.message


async def test_size_is_limited_while_streaming() -> None:
    origin = Origin(
        {
            "/declared": b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
            "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
            "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"200\r\n"
            + b"x" * 512
            + b"\r\n"
            b"200\r\n" + b"x" * 512 + b"\r\n0\r\n\r\n",
        }
    )
    async with origin.running(), fetching(names(site=["127.0.0.1"])) as fetcher:
        for path in origin.answers:
            with pytest.raises(MediaTooLargeError):
                await fetcher.fetch(f"http://site.example:{origin.port}{path}", free)


async def test_time_is_limited_in_total() -> None:
    async with Origin({}).running() as origin, fetching(names(site=["127.0.0.1"]), timeout_s=0.3) as fetcher:
        start = time.monotonic()
        with pytest.raises(MediaFetchError, match=r"within 0\.3 s"):
            await fetcher.fetch(f"http://site.example:{origin.port}/silent", free)
        assert time.monotonic() - start < 2


async def test_answers_that_are_no_media() -> None:
    origin = Origin(
        {
            "/404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "/500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
            "/gzip": ok(b"x", "Content-Encoding: gzip"),
            "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx",
            "/garbage": b"garbage\r\n\r\n",
            "/silent": b"",
        }
    )
    async with origin.running(), fetching(names(site=["127.0.0.1"])) as fetcher:
        for path in origin.answers:
            with pytest.raises(MediaFetchError):
                await fetcher.fetch(f"http://site.example:{origin.port}{path}", free)


async def test_refused_connection() -> None:
    async with Origin({}).running() as origin:
        port = origin.port
    async with fetching(names(site=["127.0.0.1"])) as fetcher:
        with pytest.raises(MediaFetchError, match="reached"):
            await fetcher.fetch(f"http://site.example:{port}/", free)


async def test_places_are_bounded_and_given_back() -> None:
    origin = Origin({"/": ok(b"picture")})
    async with origin.running(), fetching(names(site=["127.0.0.1"]), concurrency=2) as fetcher:
        url = f"http://site.example:{origin.port}"
        slow = [asyncio.create_task(fetcher.fetch(url + "/slow", free)) for _ in range(2)]
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(fetcher.fetch(url + "/", free))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        slow[0].cancel()
        assert await waiting == b"picture"
        slow[1].cancel()


async def test_the_wait_for_a_place_has_an_end() -> None:
    async with (
        Origin({}).running() as origin,
        fetching(names(site=["127.0.0.1"]), concurrency=1, timeout_s=0.5) as fetcher,
    ):
        url = f"http://site.example:{origin.port}/silent"
        # What holds the place is not ended by the same time limit.
        await fetcher._places.acquire()
        start = time.monotonic()
        with pytest.raises(OverloadedError):
            await fetcher.fetch(url, free)
        assert time.monotonic() - start < 3
        fetcher._places.release()
        with pytest.raises(MediaFetchError):
            await fetcher.fetch(url, free)


async def test_pieces_are_taken_before_they_are_kept() -> None:
    def refuse_after_half(byte_count: int) -> None:
        taken.append(byte_count)
        if sum(taken) > 500:
            raise OverloadedError("enough")

    taken: list[int] = []
    origin = Origin({"/": ok(b"x" * 1000), "/small": ok(b"x" * 400)})
    async with origin.running(), fetching(names(site=["127.0.0.1"])) as fetcher:
        base = f"http://site.example:{origin.port}"
        assert len(await fetcher.fetch(base + "/small", refuse_after_half)) == sum(taken) == 400
        with pytest.raises(OverloadedError):
            await fetcher.fetch(base + "/", refuse_after_half)


async def test_look_ups_that_hang_hold_up_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    asked: list[str] = []

    def silent(host: str, port: int, **options: object) -> list[object]:
        asked.append(threading.current_thread().name)
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    looking = [asyncio.create_task(resolve(f"{number}.example", 80)) for number in range(50)]
    try:
        await asyncio.sleep(0.2)
        assert 0 < len(asked) <= 16
        assert all(name.startswith("media-look-up") for name in asked)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: 1) == 1
    finally:
        release.set()
        await asyncio.gather(*looking)
