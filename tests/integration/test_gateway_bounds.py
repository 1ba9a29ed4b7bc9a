"""What one client or one name server can hold up: a bounded number of bytes, for a bounded time."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from gateway import body as gateway_body
from gateway.addresses import IpAddress
from tests.integration.scripted_services import ScriptedEncoder, ScriptedLlm, Stack, running_stack, until

MIB = 1024 * 1024
HI = {"messages": [{"role": "user", "content": "Hi"}]}


def count(stack: Stack) -> float | None:
    return stack.gateway.metrics.registry.get_sample_value("percept:num_requests_in_gateway")


def pictures(*urls: str) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": parts}]}


async def ask(stack: Stack, question: dict[str, object]) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(stack.base_url + "/chat/completions", json=question)


def address(stack: Stack) -> tuple[str, int]:
    return "127.0.0.1", int(stack.url.rsplit(":", 1)[1])


def head(*lines: str) -> bytes:
    first = "POST /v1/chat/completions HTTP/1.1", "Host: a", "Content-Type: application/json"
    return "\r\n".join([*first, *lines, "", ""]).encode()


@asynccontextmanager
async def origin(size: int) -> AsyncIterator[str]:
    """A web server on loopback whose every path is so many bytes long."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        content = path.ljust(size, b"x")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + content)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_client_that_does_not_read_loses_its_place() -> None:
    llm = ScriptedLlm(words=["x" * 10_000] * 5000)
    async with running_stack([llm], client_timeout_s=0.5) as stack:
        with socket.create_connection(address(stack)) as client:
            question = json.dumps({**HI, "stream": True}).encode()
            client.sendall(head(f"Content-Length: {len(question)}") + question)
            await until(lambda: count(stack) == 1)
            await until(lambda: count(stack) == 0, seconds=5.0)
            await until(lambda: llm.running == 0, seconds=2.0)
            assert stack.gateway.budget.held == 0
            # The connection ends, too, although what was sent is still unread.
            await asyncio.sleep(2.0)
            client.settimeout(5.0)
            with pytest.raises(ConnectionResetError):
                while await asyncio.to_thread(client.recv, MIB):
                    pass
        assert (await ask(stack, HI)).status_code == 200


async def test_fetched_media_count_in_the_budget_of_all() -> None:
    async with origin(MIB) as site, running_stack(max_held_mib=2.5, allow_private_media=True) as stack:
        refused = await ask(stack, pictures(*(f"{site}/{number}" for number in range(3))))
        assert refused.status_code == 429
        assert refused.json()["error"]["param"] is None
        assert refused.headers["retry-after"] == "1"
        assert stack.gateway.budget.held == 0
        answer = await ask(stack, pictures(*(f"{site}/{number}" for number in range(2))))
        assert answer.status_code == 200
        assert stack.gateway.budget.held == 0


async def test_media_are_held_until_the_answer_ended() -> None:
    async with (
        origin(MIB) as site,
        running_stack([ScriptedLlm(pause_s=0.2)], max_held_mib=1.5, allow_private_media=True) as stack,
    ):
        asking = asyncio.create_task(ask(stack, pictures(f"{site}/1")))
        await until(lambda: stack.llms[0].running == 1)
        assert stack.gateway.budget.held >= MIB
        assert (await ask(stack, pictures(f"{site}/2"))).status_code == 429
        assert (await asking).status_code == 200
        assert (await ask(stack, pictures(f"{site}/2"))).status_code == 200


async def test_the_media_of_one_request_have_a_bound_together(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / str(number)).write_bytes(b"%d" % number * MIB)
    files = [f"file://{tmp_path}/{number}" for number in range(3)]
    data = ["data:;base64," + base64.b64encode(b"%d" % number * MIB).decode() for number in range(3)]
    async with (
        origin(MIB) as site,
        running_stack(
            max_request_media_mib=2.5, allow_private_media=True, allowed_local_media_path=tmp_path
        ) as stack,
    ):
        for urls in ([f"{site}/{number}" for number in range(3)], files, data):
            refused = await ask(stack, pictures(*urls))
            assert refused.status_code == 413, refused.text
            assert refused.json()["error"]["code"] == "media_too_large"
            assert "together" in refused.json()["error"]["message"]
            assert (await ask(stack, pictures(*urls[:2]))).status_code == 200
        assert stack.gateway.budget.held == 0


async def test_an_endless_upload_is_refused_and_its_connection_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_body, "_DISCARD_BYTE_COUNT", 3 * MIB)
    async with running_stack(max_body_mib=1.0, max_held_mib=2.0) as stack:
        reader, writer = await asyncio.open_connection(*address(stack))
        writer.write(head("Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

        async def upload() -> None:
            while True:
                writer.write(chunk)
                await writer.drain()

        uploading = asyncio.create_task(upload())
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 413 " in answer
            assert b"connection: close" in answer.lower()
            # The gateway takes no more: the upload breaks off.
            with pytest.raises(ConnectionError):
                await uploading
        writer.close()


async def test_a_client_that_writes_all_before_it_reads_sees_the_refusal() -> None:
    zeros = bytes(160 * MIB)
    async with running_stack(max_body_mib=1.0) as stack, httpx.AsyncClient(timeout=60) as http:
        for _ in range(2):
            answer = await http.post(
                stack.base_url + "/chat/completions",
                content=zeros,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 413


async def test_a_body_that_is_thrown_away_is_not_held() -> None:
    async with running_stack(max_body_mib=1.0, max_held_mib=2.0) as stack:
        _, writer = await asyncio.open_connection(*address(stack))
        writer.write(head("Transfer-Encoding: chunked"))
        for _ in range(48):
            writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await writer.drain()
        # 3 MiB were sent, and the body goes on.
        await until(lambda: count(stack) == 1)
        await until(lambda: stack.gateway.budget.held == 0, seconds=2.0)
        question = {"messages": [{"role": "user", "content": "x" * 900_000}]}
        assert (await ask(stack, question)).status_code == 200
        assert count(stack) == 1
        writer.close()
        await until(lambda: count(stack) == 0, seconds=2.0)


async def test_a_body_that_ends_over_the_limit_is_refused_at_once() -> None:
    async def small_pieces() -> AsyncIterator[bytes]:
        yield b" " * 900
        await asyncio.sleep(0.1)
        yield b" " * 900

    async with running_stack(max_body_mib=0.001) as stack, httpx.AsyncClient(timeout=30) as http:
        start = time.monotonic()
        answer = await http.post(
            stack.base_url + "/chat/completions",
            content=small_pieces(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
        assert "connection" not in answer.headers
        assert time.monotonic() - start < 3


async def test_media_are_resolved_within_the_deadline() -> None:
    async def silent(host: str, port: int) -> Sequence[IpAddress]:
        await asyncio.sleep(30)
        return [ip_address("127.0.0.1")]

    settings = {"request_timeout_s": 0.3, "media_fetch_timeout_s": 20.0}
    async with running_stack(resolver=silent, **settings) as stack:
        start = time.monotonic()
        answer = await ask(stack, pictures("http://site.example/a.png"))
        assert answer.status_code == 504
        assert time.monotonic() - start < 5


async def test_methods_of_the_clients_make_no_metrics() -> None:
    async with running_stack() as stack, httpx.AsyncClient() as http:
        for number in range(20):
            assert (await http.request(f"MINE{number}", stack.base_url + "/models")).status_code == 405
        await http.get(stack.base_url + "/models")
        lines = (await http.get(stack.url + "/metrics")).text.splitlines()
        counted = [line for line in lines if line.startswith("http_requests_total")]
        assert not any("MINE" in line for line in lines)
        assert sum('method="other"' in line for line in counted) == 1
        assert sum('method="GET"' in line for line in counted) == 1


async def test_a_client_that_leaves_is_counted() -> None:
    llm, encoder = ScriptedLlm(pause_s=5.0), ScriptedEncoder()

    def cancelled(stack: Stack) -> float | None:
        return stack.gateway.metrics.registry.get_sample_value(
            "percept:request_success_total", {"model_name": "tiny", "finished_reason": "cancelled"}
        )

    async with running_stack([llm], [encoder]) as stack:
        for total, stream in ((2, False), (4, True)):
            asking = asyncio.create_task(ask(stack, {**HI, "n": 2, "stream": stream}))
            await until(lambda: llm.running == 1)
            asking.cancel()
            await until(lambda total=total: cancelled(stack) == total, seconds=5.0)  # type: ignore[misc]
            await until(lambda: llm.running == 0)


async def test_steps_of_several_choices_are_shared() -> None:
    async with running_stack() as stack:
        assert (await ask(stack, {**HI, "n": 4})).status_code == 200
        value = stack.gateway.metrics.registry.get_sample_value(
            "percept:stage_seconds_sum", {"model_name": "tiny", "modality": "", "stage": "decode_step"}
        )
        # Three tokens of each choice: two steps of decoding in 0.3 s.
        assert value == pytest.approx(0.15)
