"""The load generator against a server whose delays and failures are known."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from percept.bench import (
    BenchError,
    Load,
    Progress,
    RunResult,
    Slo,
    Target,
    Workload,
    read_result,
    run_load,
    summarise,
    to_json,
    write_result,
)
from shared.errors import InvalidRequestError
from tests.integration.streaming_server import Body, Script, StreamingServer, streaming
from tests.stack import clean_environment, free_port

SHORT = Workload(prompt_tokens=40, output_tokens=8)


async def run(server: StreamingServer, load: Load, workload: Workload = SHORT, **target: Any) -> RunResult:
    return await run_load(Target(server.url, **target), workload, load, calibrate=False)


def errors_of(result: RunResult) -> list[str | None]:
    return [record.error for record in result.records]


async def test_times_are_those_of_the_server() -> None:
    """Lower bounds alone: what a busy machine adds is not ours to judge."""
    async with streaming(Script(words=4, first_s=0.05, gap_s=0.02)) as server:
        result = await run(server, Load.closed(2, requests=6, warmup=0))
    assert errors_of(result) == [None] * 6
    for record in result.records:
        assert record.ttft_s is not None and record.ttft_s >= 0.049
        assert len(record.itl_s) == 3
        assert sum(record.itl_s) >= 0.059
        # Eight tokens in four deltas: three gaps of 20 ms over seven further tokens.
        assert record.tpot_s == pytest.approx(sum(record.itl_s) / 7)
        assert record.e2e_s >= 0.109
        assert record.status == 200
        assert record.output_tokens == 8
    assert result.duration_s >= 3 * 0.109
    assert summarise(result).overall.output_tokens_per_s == pytest.approx(48 / result.duration_s)


async def test_a_closed_loop_keeps_so_many_under_way_and_its_connections() -> None:
    async with streaming(Script(gap_s=0.005)) as server:
        result = await run(server, Load.closed(3, requests=12, warmup=0))
        assert server.most_under_way == 3
        assert server.connection_count == 3 + 1  # One asked for the model's name.
    assert sorted(record.index for record in result.records) == list(range(12))
    assert all(record.sent_s == record.scheduled_s for record in result.records)


async def test_an_open_loop_sends_on_time_to_a_server_that_is_late() -> None:
    load = Load.open(50, requests=10, warmup=0)
    async with streaming(Script(first_s=0.4)) as server:
        result = await run(server, load)
        # All were sent while the first was still waiting.
        assert server.most_under_way == 10
    assert sorted(record.scheduled_s for record in result.records) == pytest.approx(
        load.arrival_times(), abs=1e-5
    )
    assert all(record.sent_s >= record.scheduled_s for record in result.records)


async def test_a_late_send_counts_against_the_answer() -> None:
    """The loop is blocked for 0.2 s: latencies begin when requests were due, and it is said."""

    def block_once(progress: Progress) -> None:
        if progress.phase == "measuring" and progress.done == 1:
            time.sleep(0.2)

    async with streaming() as server:
        result = await run_load(
            Target(server.url),
            SHORT,
            Load.open(100, requests=20, arrivals="even", warmup=0),
            on_progress=block_once,
            calibrate=False,
        )
    late = [record for record in result.records if record.sent_s - record.scheduled_s > 0.05]
    assert late
    assert all(record.ttft_s is not None and record.ttft_s > 0.05 for record in late)
    assert result.generator.send_lag_max_ms > 50
    assert any("fell behind" in warning for warning in summarise(result).warnings)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(status=429, text="full"), "HTTP 429: full"),
        (Script(status=503, text="loading"), "HTTP 503: loading"),
        (Script(break_after=2), "the server closed the connection, 2 deltas"),
        (Script(break_after=0), "the server closed the connection"),
        (Script(error_after=1), "error in the stream: the engine died"),
        (Script(words=0), "empty answer: 0 tokens without text"),
    ],
)
async def test_failures_are_counted_with_their_text(script: Script, error: str) -> None:
    async with streaming(lambda n, body: script if n % 2 else Script()) as server:
        result = await run(server, Load.closed(1, requests=6, warmup=0))
    assert errors_of(result) == [None, error] * 3
    group = summarise(result, Slo(e2e_ms=60_000)).overall
    assert (group.answered, group.failed, group.errors) == (3, 3, {error: 3})
    assert group.goodput is not None and group.goodput.share == 0.5


async def test_a_request_that_takes_too_long_is_an_error() -> None:
    async with streaming(lambda n, body: Script(first_s=30 if n == 1 else 0)) as server:
        result = await run(server, Load.closed(1, requests=3, warmup=0), timeout_s=0.3)
    assert errors_of(result) == [None, "timeout after 0.3 s", None]
    assert result.records[1].e2e_s >= 0.3


async def test_connections_may_end_after_each_answer() -> None:
    async with streaming(Script(keep=False)) as server:
        result = await run(server, Load.closed(2, requests=6, warmup=0))
        assert server.connection_count == 6 + 1
    assert errors_of(result) == [None] * 6


async def test_a_connection_that_went_stale_is_no_failure() -> None:
    async with streaming() as server:
        server.drop_idle = True
        result = await run(server, Load.closed(1, requests=3, warmup=0))
    assert errors_of(result) == [None] * 3


async def test_nobody_there_is_a_record_for_each_request() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    load = Load.closed(2, requests=4, warmup=0)
    result = await run_load(Target(url, model="m"), SHORT, load, calibrate=False)
    assert all(error is not None and error.startswith("no connection") for error in errors_of(result))
    assert len(result.records) == 4


async def test_nobody_there_to_ask_for_a_model_is_said_at_once() -> None:
    with pytest.raises(BenchError, match="no server at"):
        await run_load(Target(f"http://127.0.0.1:{free_port()}"), SHORT, Load.closed(1, requests=1))


async def test_a_target_that_refuses_the_first_question_is_said_at_once() -> None:
    async with streaming(Script(status=422, text="Unexpected fields: ignore_eos")) as server:
        with pytest.raises(BenchError, match=r"HTTP 422: Unexpected fields: ignore_eos .*--no-ignore-eos"):
            await run_load(Target(server.url), SHORT, Load.closed(1, requests=1))


async def test_prompts_are_made_as_long_as_the_server_counts() -> None:
    """It counts 10 tokens for the template and two for each word."""
    async with streaming() as server:
        load = Load.closed(1, requests=3, warmup=0)
        result = await run_load(Target(server.url), Workload(prompt_tokens=250, output_tokens=8), load)
    assert [record.input_tokens for record in result.records] == [250] * 3


async def test_warm_ups_come_first_are_not_counted_and_equal_nothing() -> None:
    async with streaming() as server:
        result = await run(server, Load.closed(2, requests=5, warmup=4))
        prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(result.records) == 5
    assert len(set(prompts)) == 9


async def test_every_repeated_picture_is_warmed_up() -> None:
    shape = Workload(images=1, image_width=8, image_height=8, repeated_images=5)

    def url(body: Body) -> str:
        return str(body["messages"][0]["content"][0]["image_url"]["url"])

    async with streaming() as server:
        await run(server, Load.closed(1, requests=10, warmup=1), shape)
        urls = [url(body) for body in server.bodies]
    assert len(urls) == 15
    assert len(set(urls[:5])) == len(set(urls)) == 5


async def test_a_time_limit_ends_the_sending_and_waits_for_the_rest() -> None:
    async with streaming(Script(first_s=0.05)) as server:
        result = await run(server, Load.closed(4, duration_s=0.3, warmup=0))
    assert len(result.records) >= 4
    assert all(record.sent_s < 0.3 for record in result.records)
    assert errors_of(result) == [None] * len(result.records)
    assert result.unfinished == 0


async def test_more_than_is_built_ahead_is_built_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("percept.bench.feed.AHEAD_BYTES", 3000)
    async with streaming() as server:
        result = await run(server, Load.closed(4, requests=60, warmup=0))
    assert sorted(record.index for record in result.records) == list(range(60))
    assert errors_of(result) == [None] * 60


@pytest.mark.parametrize(
    "load", [Load.closed(3, duration_s=600, warmup=0), Load.open(50, duration_s=600, warmup=0)]
)
async def test_a_stop_keeps_what_ended_and_counts_what_did_not(load: Load) -> None:
    stop = asyncio.Event()

    def stop_after_five(progress: Progress) -> None:
        if progress.phase == "measuring" and progress.done == 5:
            stop.set()

    async with streaming(lambda n, body: Script(first_s=0 if n < 5 else 60)) as server:
        target = Target(server.url)
        result = await run_load(target, SHORT, load, on_progress=stop_after_five, stop=stop, calibrate=False)
    assert result.interrupted
    assert len(result.records) == 5
    assert errors_of(result) == [None] * 5
    assert any("interrupted" in warning for warning in summarise(result).warnings)


async def test_without_counts_deltas_are_taken_for_tokens() -> None:
    async with streaming(Script(usage=False)) as server:
        result = await run_load(Target(server.url), SHORT, Load.closed(1, requests=2, warmup=0))
    assert [record.token_count for record in result.records] == [4, 4]
    assert any("without token counts" in warning for warning in summarise(result).warnings)


async def test_a_result_survives_its_file(tmp_path: Path) -> None:
    shape = Workload(output_tokens=8, images=1, image_share=0.5, image_width=8, image_height=8)
    async with streaming(lambda n, body: Script(status=500) if n == 2 else Script()) as server:
        result = await run(server, Load.closed(2, requests=8), shape, api_key="top-secret")
    path = tmp_path / "new" / "result.json"
    write_result(path, result, Slo(ttft_ms=1))
    held = read_result(path)
    assert held.result == result
    assert held.summary == summarise(result, Slo(ttft_ms=1))
    assert held.generator_cpu_share > 0
    assert "top-secret" not in path.read_text()
    assert json.loads(to_json(result))["summary"]["by_kind"].keys() == {"text", "image"}


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="No such file"):
        read_result(tmp_path / "none.json")
    other = tmp_path / "other.json"
    other.write_text('{"format": "else"}')
    with pytest.raises(InvalidRequestError, match="no result of percept bench: format"):
        read_result(other)


# The command line, as a process.


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with streaming() as running:
        yield running


async def bench(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "percept",
        "bench",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_the_command_measures_writes_and_draws(server: StreamingServer, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        flags = ["--url", server.url, "--name", name, "--requests", "10", "--slo", "ttft=1000"]
        flags += ["--images", "1", "--image-share", "0.5", "--image-size", "16x16"]
        json_path, plots = tmp_path / f"{name}.json", tmp_path / name
        status, output, errors = await bench("serve", *flags, "--json", str(json_path), "--plots", str(plots))
        assert status == 0, errors
        assert "10 answered, none failed" in output
        assert "TTFT image" in output and "Goodput" in output
        expected = {"latency_cdf", "ttft_over_time", "tokens_over_time"}
        assert {path.name for path in plots.iterdir()} == {
            f"{e}.{k}" for e in expected for k in ("png", "svg")
        }
        found.append(str(json_path))
    status, output, errors = await bench("compare", *found, "--plots", str(tmp_path / "both"))
    assert status == 0, errors
    assert "one" in output and "ratio" in output and "TTFT p99 ms" in output
    assert (tmp_path / "both" / "compare.svg").stat().st_size > 1000


async def test_a_server_that_answers_nothing_is_status_1(tmp_path: Path) -> None:
    async with streaming(Script(status=500, text="broken")) as server:
        flags = ["--url", server.url, "--requests", "3", "--no-calibrate", "--plots", str(tmp_path)]
        status, output, errors = await bench("serve", *flags)
    assert status == 1
    assert "Warning" not in errors
    assert "3 failed" in output and "HTTP 500: broken" in output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rate", "5", "--concurrency", "2"], "--concurrency and rate exclude each other"),
        (["--slo", "speed=5"], "--slo speed=5: write ttft=MS"),
        (["--image-size", "big"], "WIDTHxHEIGHT"),
        (["--extra-body", "[1]"], "--extra-body must be a JSON object"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--image-size", "0x5"], "--image-size must be at least 1"),
    ],
)
async def test_mistakes_are_one_line_and_status_2(flags: list[str], words: str) -> None:
    status, output, errors = await bench("serve", *flags)
    assert (status, output) == (2, "")
    assert words in errors and errors.count("\n") == 1


async def test_a_file_that_cannot_be_written_is_said_before_the_run(
    server: StreamingServer, tmp_path: Path
) -> None:
    status, output, errors = await bench("serve", "--url", server.url, "--json", str(tmp_path))
    assert (status, output) == (1, "")
    assert "cannot be written" in errors
    assert server.bodies == []


async def test_every_option_is_explained() -> None:
    status, output, _ = await bench("serve", "--help")
    assert status == 0
    for flag in ("--url", "--rate", "--image-share", "--repeated-images", "--slo", "--json", "--plots"):
        assert flag in output


async def test_an_interrupt_prints_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    async with streaming(lambda n, body: Script(first_s=0 if n < 6 else 60)) as server:
        flags = [
            "--url",
            server.url,
            "--requests",
            "50",
            "--warmup",
            "0",
            "--no-calibrate",
            "--json",
            str(path),
        ]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "percept", "bench", "serve", *flags, "--json", str(path)),
            stdout=subprocess.PIPE,
            env=clean_environment(),
        )
        while len(server.bodies) < 14:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
    assert process.returncode == 130
    assert b"6 answered, none failed" in output
    assert b"8 requests were under way" in output
    assert len(read_result(path).result.records) == 6
