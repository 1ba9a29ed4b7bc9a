"""`percept bench serve` with no flag but the port, against what `percept up` starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from percept.bench import Load, Slo, Target, Workload, read_result, run_load, summarise
from tests.stack import UpStack, clean_environment

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def bundled() -> Iterator[UpStack]:
    """The bundled model, as a newcomer serves it."""
    running = UpStack("percept-tiny", "--workers", "1")
    yield running
    running.stop()


def test_the_newcomers_command_measures_the_bundled_model(bundled: UpStack, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    flags = ["--url", f"{bundled.url}/v1", "--requests", "12", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "percept", "bench", "serve", *flags],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12 answered, none failed" in done.stdout
    held = read_result(path)
    assert held.result.model == "percept-tiny"
    assert held.summary.warnings == [] or all("generator" in text for text in held.summary.warnings)
    for record in held.result.records:
        assert record.output_tokens == 64
        assert record.input_tokens is not None and 80 < record.input_tokens < 180


async def test_a_mix_of_text_and_pictures(bundled: UpStack) -> None:
    mix = Workload(
        prompt_tokens=60, output_tokens=8, images=2, image_share=0.5, image_width=56, image_height=56
    )
    result = await run_load(Target(bundled.url), mix, Load.open(20, requests=20))
    assert [record.error for record in result.records] == [None] * 20
    summary = summarise(result, Slo(e2e_ms=600_000))
    text, image = summary.by_kind["text"], summary.by_kind["image"]
    assert text.answered == image.answered == 10
    assert text.input_tokens is not None and image.input_tokens is not None
    assert image.input_tokens.mean > text.input_tokens.mean
    assert summary.overall.goodput is not None and summary.overall.goodput.share == 1
    bundled.wait_until_idle(30)


async def test_fresh_pictures_are_encoded_and_repeated_ones_are_not(bundled: UpStack) -> None:
    """The generator's promise about caches, by the encoder's own count."""
    shape = {"prompt_tokens": 40, "output_tokens": 2, "images": 1, "image_width": 56, "image_height": 56}
    load = Load.closed(1, requests=6, warmup=2)
    for repeated, runs in (0, 8), (1, 1):
        before = bundled.encoder_status().encoded_item_count
        await run_load(Target(bundled.url), Workload(**shape, repeated_images=repeated, seed=77), load)
        assert bundled.encoder_status().encoded_item_count - before == runs
