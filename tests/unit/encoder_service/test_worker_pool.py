"""Worker processes: whatever happens to one costs one item at most."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from encoder_service.media.messages import Job
from encoder_service.media.pool import WorkerPool
from encoder_service.media.worker import WorkerLimits
from protos.media.v1 import media_pb2
from shared.errors import BadMediaError, InvalidRequestError, MediaTooLargeError, UnavailableError
from shared.families.base import EncodedItem, Features
from tests.unit.encoder_service.obedient import make_nothing, make_obedient
from tests.unit.encoder_service.waiting import until

LIMITS = WorkerLimits(time_limit_s=2.0, memory_byte_count=400_000_000, max_pixel_count=10_000_000)

PATIENT = WorkerLimits(time_limit_s=30.0, memory_byte_count=400_000_000, max_pixel_count=10_000_000)


def picture(colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def job(**settings: Any) -> Job:
    return Job("file", settings=json.dumps(settings) if settings else "")


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(make_obedient, 2, LIMITS)
    await pool.start()
    yield pool
    await pool.close()


async def run_features(pool: WorkerPool, work: Job, payload: bytes | None = None) -> Features:
    result = await pool.run(work, picture() if payload is None else payload)
    assert isinstance(result, Features)
    return result


async def test_features_come_back_whole(pool: WorkerPool) -> None:
    features = await run_features(pool, job(), picture((10, 20, 30), (300, 200)))
    assert features.info.image_size == (200, 300)
    assert features.token_cost == 4
    assert features.arrays["mean"].tolist() == [10.0, 20.0, 30.0]
    assert features.arrays["pixels"].shape == (200, 300, 3)
    assert (features.arrays["pixels"] == np.array([10, 20, 30])).all()


async def test_precomputed_embeddings_come_back_as_they_were(pool: WorkerPool) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.float32).reshape(3, 2))
    field = media_pb2.PrecomputedField(name="image_embeds", data=file.getvalue())
    payload = media_pb2.PrecomputedEmbeddings(fields=[field]).SerializeToString()
    item = await pool.run(Job("embeddings", settings=""), payload)
    assert isinstance(item, EncodedItem)
    assert np.frombuffer(item.tensors["image_embeds"].data, np.float32).tolist() == list(range(6))


async def test_many_items_at_once(pool: WorkerPool) -> None:
    results = await asyncio.gather(*(run_features(pool, job(), picture((n, 0, 0))) for n in range(100)))
    assert [result.arrays["mean"][0] for result in results] == list(range(100))
    assert pool.lost_worker_count == 0


async def test_a_hanging_decoder_is_killed_and_the_next_item_served(pool: WorkerPool) -> None:
    started = time.monotonic()
    others = [asyncio.create_task(run_features(pool, job())) for _ in range(20)]
    with pytest.raises(BadMediaError, match="longer than 2 s"):
        await run_features(pool, job(sleep=60))
    assert time.monotonic() - started < 5
    assert len(await asyncio.gather(*others)) == 20
    assert pool.lost_worker_count == 1
    await run_features(pool, job())


async def test_an_item_that_crashes_its_worker_fails_alone(pool: WorkerPool) -> None:
    others = [asyncio.create_task(run_features(pool, job())) for _ in range(20)]
    with pytest.raises(BadMediaError, match="crashed"):
        await run_features(pool, job(kill=True))
    assert len(await asyncio.gather(*others)) == 20
    assert pool.lost_worker_count == 2


async def test_an_item_whose_worker_was_killed_from_outside_is_tried_again(
    pool: WorkerPool, tmp_path: Path
) -> None:
    await run_features(pool, job(kill_once=str(tmp_path / "killed")))
    assert pool.lost_worker_count == 1


async def test_kill_9_in_the_middle_of_an_item(pool: WorkerPool, tmp_path: Path) -> None:
    report = tmp_path / "pid"
    task = asyncio.create_task(run_features(pool, job(report=str(report), sleep=1)))
    await until(lambda: report.exists() and report.read_text() != "")
    os.kill(int(report.read_text()), signal.SIGKILL)
    assert (await task).token_cost == 4
    assert pool.lost_worker_count == 1


async def test_kill_9_of_idle_workers(pool: WorkerPool, tmp_path: Path) -> None:
    for number in range(2):
        await run_features(pool, job(report=str(tmp_path / f"{number}")))
        os.kill(int((tmp_path / f"{number}").read_text()), signal.SIGKILL)
    await asyncio.gather(*(run_features(pool, job()) for _ in range(10)))


async def test_memory_is_bounded_in_the_worker(pool: WorkerPool) -> None:
    with pytest.raises(MediaTooLargeError, match="memory"):
        await run_features(pool, job(allocate=1_000_000_000))
    await run_features(pool, job(allocate=100_000_000))
    assert pool.lost_worker_count == 0


async def test_typed_errors_cross_and_others_are_withheld(pool: WorkerPool) -> None:
    with pytest.raises(BadMediaError, match="too narrow") as caught:
        await run_features(pool, job(refuse=True))
    assert caught.value.param == "image"
    with pytest.raises(BadMediaError) as caught:
        await run_features(pool, job(fail=True))
    assert "0x" not in str(caught.value) and "/" not in str(caught.value)


async def test_settings_that_are_no_object_are_refused(pool: WorkerPool) -> None:
    with pytest.raises(InvalidRequestError, match="JSON object"):
        await pool.run(Job("file", settings="[1]"), picture())


async def test_a_caller_who_leaves_costs_nobody_a_worker(pool: WorkerPool) -> None:
    leaving = [asyncio.create_task(run_features(pool, job(sleep=0.3))) for _ in range(2)]
    await asyncio.sleep(0.1)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    await asyncio.gather(*(run_features(pool, job()) for _ in range(10)))
    assert pool.lost_worker_count == 0


async def test_callers_who_leave_costly_items_hold_no_worker(pool: WorkerPool) -> None:
    leaving = [asyncio.create_task(run_features(pool, job(sleep=60))) for _ in range(2)]
    await asyncio.sleep(0.1)
    for task in leaving:
        task.cancel()
    started = time.monotonic()
    await asyncio.gather(*(run_features(pool, job()) for _ in range(10)))
    # Well before the time limit would have done it.
    assert time.monotonic() - started < LIMITS.time_limit_s - 0.3
    assert pool.lost_worker_count == 0


async def test_closing_ends_a_busy_worker_at_once_and_tells_who_waits(tmp_path: Path) -> None:
    pool = WorkerPool(make_obedient, 1, PATIENT)
    await pool.start()
    report = tmp_path / "pid"
    running = asyncio.create_task(run_features(pool, job(report=str(report), sleep=60)))
    waiting = [asyncio.create_task(run_features(pool, job())) for _ in range(3)]
    await until(lambda: report.exists() and report.read_text() != "")
    started = time.monotonic()
    await pool.close()
    assert time.monotonic() - started < 2
    assert not psutil.pid_exists(int(report.read_text()))
    async with asyncio.timeout(2):
        ends = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [UnavailableError] * 4


PROGRAM = """
import asyncio, sys
with open(sys.argv[1], "a") as file:
    file.write("imported ")
from encoder_service.media.pool import WorkerPool
from encoder_service.media.worker import WorkerLimits
from tests.unit.encoder_service.obedient import make_obedient

async def main() -> None:
    pool = WorkerPool(make_obedient, 2, WorkerLimits(2.0, 400_000_000, 1000))
    await pool.start()
    await pool.close()
    assert sys.modules["__main__"].__file__ == __file__

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("way", [["program.py"], ["-m", "program"]], ids=["file", "module"])
async def test_workers_do_not_import_the_main_module(way: list[str], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    program = await asyncio.create_subprocess_exec(
        sys.executable, *way, str(tmp_path / "imports"), cwd=tmp_path, env=environment
    )
    assert await asyncio.wait_for(program.wait(), 60) == 0
    assert (tmp_path / "imports").read_text() == "imported "


async def test_a_factory_that_fails_tells_why() -> None:
    pool = WorkerPool(make_nothing, 1, LIMITS)
    with pytest.raises(InvalidRequestError, match="no processor"):
        await pool.start()
    await pool.close()


async def test_closing_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    descriptors = psutil.Process().num_fds()
    pool = WorkerPool(make_obedient, 2, LIMITS)
    await pool.start()
    await asyncio.gather(*(run_features(pool, job()) for _ in range(10)))
    await run_features(pool, job(report=str(tmp_path / "pid")))
    await pool.close()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert psutil.Process().num_fds() <= descriptors + 4
