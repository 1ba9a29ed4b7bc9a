"""When tokens are heard: the engine's times are those of transformers' `return_token_timestamps`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_service.engine.messages import EngineStatus, SamplingSettings
from llm_service.runner.cpu.looking_decoder import CpuLookingDecoder
from shared.families.alignment import _median
from shared.families.base import AudioClip
from shared.families.time_warping import first_rows
from shared.families.token_rules import SpeechTask
from tests.families.whisper import build
from tests.integration.test_whisper import ASKED, COUNT, SECONDS, Asked, World, clip, key

RATE = 16_000


class TimedWorld(World):
    """Also asks transformers for times."""

    def __init__(self, folder: Path, kernels: str = "auto") -> None:
        super().__init__(folder, kernels)
        # Only plain attention gives its weights away.
        self.model.set_attn_implementation("eager")
        self._times: dict[Asked, list[float]] = {}

    def add_timed(self, local: Any, asked: Asked) -> int:
        ids = self.prompt(asked.task)
        rules = self.layout.rules(ids, asked.task)
        added: int = local.front.add(
            ids,
            [key(asked.clip)],
            max_token_count=COUNT + len(rules.leading),
            stop_token_ids=[self.end],
            sampling=SamplingSettings(rules=rules),
            times_behind=len(rules.leading),
        )
        return added

    def seconds(self, asked: Asked) -> list[float]:
        """Of the answer's tokens; 0 for what the prompt leaves open."""
        if asked not in self._times:
            self._times[asked] = self._generate_times(asked)
        return self._times[asked]

    def _generate_times(self, asked: Asked) -> list[float]:
        task = asked.task
        said = {}
        if task.previous_text:
            said["prompt_ids"] = self.processor.get_prompt_ids(task.previous_text, return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(
                **self.processor.feature_extractor(
                    clip(asked.clip), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
                ),
                language=task.language or None,
                task="translate" if task.translates else "transcribe",
                return_timestamps=task.timestamps,
                return_token_timestamps=True,
                do_sample=False,
                max_new_tokens=COUNT,
                force_unique_generate_call=True,
                **said,
            )
        ours = self.prompt(task)
        tokens = output["sequences"][0].tolist()
        assert tokens[len(ours) :] == self.expected(asked)
        times: list[float] = output["token_timestamps"][0].tolist()
        return times[len(ours) :]


def times_of(local: Any, sequence_id: int) -> list[float]:
    *others, last = local.front.reports[sequence_id]
    assert all(report.token_seconds is None for report in others)
    assert last.token_seconds is not None
    found: list[float] = last.token_seconds
    return found


@pytest.fixture(scope="module", params=["auto", "torch"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TimedWorld:
    made = TimedWorld(build(tmp_path_factory.mktemp("whisper")), request.param)
    assert isinstance(made.runner._model, CpuLookingDecoder) == (request.param == "auto")
    return made


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: str(asked.clip))
def test_one_alone(world: TimedWorld, asked: Asked) -> None:
    local = world.engine()
    added = world.add_timed(local, asked)
    assert local.run([added]) == [world.expected(asked)]
    assert times_of(local, added) == pytest.approx(world.seconds(asked), abs=1e-6)


def test_times_tell_recordings_apart(world: TimedWorld) -> None:
    """Otherwise equality would show nothing."""
    assert len({tuple(world.seconds(asked)) for asked in ASKED}) == len(ASKED)
    for asked in ASKED:
        times = world.seconds(asked)
        assert times == sorted(times) and times[-1] <= SECONDS[asked.clip]
    assert max(len(set(world.seconds(asked))) for asked in ASKED) > 8


Check = Callable[[EngineStatus], bool]

in_every_way = pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, lambda status: status.preemption_count == 0),
        ({"max_num_batched_tokens": 23}, lambda status: status.step_count > 80),
        ({"block_count": 126}, lambda status: status.preemption_count > 0),
        ({"enable_prefix_caching": False}, lambda status: status.prefix_hit_token_count == 0),
    ],
    ids=["at once", "small steps", "preempted", "no cache"],
)


@in_every_way
def test_all_at_once_beside_others(world: TimedWorld, changes: dict[str, object], check: Check) -> None:
    local = world.engine(**changes)
    timed = [world.add_timed(local, asked) for asked in ASKED]
    plain = [world.add(local, asked) for asked in ASKED]
    again = [world.add_timed(local, asked) for asked in reversed(ASKED)]
    got = local.run([*timed, *plain, *again])
    everything = [*ASKED, *ASKED, *reversed(ASKED)]
    assert got == [world.expected(asked) for asked in everything]
    for added, asked in zip([*timed, *again], [*ASKED, *reversed(ASKED)], strict=True):
        assert times_of(local, added) == pytest.approx(world.seconds(asked), abs=1e-6)
    assert all(local.front.reports[added][-1].token_seconds is None for added in plain)
    assert check(local.status), local.status
    assert world.runner._times._kept == {}, "what ended is kept no more"


def test_recordings_and_answers_that_are_too_short(world: TimedWorld) -> None:
    """Less than a row; a single token, which transformers gives no time either."""
    local = world.engine()
    local.front.hear("f" * 64, AudioClip(clip(0)[:100], RATE))
    ids = world.prompt(SpeechTask(language="en"))
    short = local.front.add(ids, ["f" * 64], max_token_count=COUNT, times_behind=0)
    local.run([short])
    assert set(times_of(local, short)) == {0.0}
    for count in (1, 2):
        added = local.front.add(ids, [key(1)], max_token_count=count, times_behind=0)
        local.run([added])
        assert times_of(local, added) == [0.0] * count


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (1, 9), (9, 1), (2, 2), (7, 30), (30, 7), (24, 200)])
def test_warping_is_that_of_transformers(tokens: int, rows: int) -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=(tokens, rows))
        if seed == 4:
            cost = np.round(cost)  # Ties.
        text, time = _dynamic_time_warping(cost)
        jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
        # A path that begins beside the matrix has a jump in front of it.
        expected = time[jumps][text[jumps] >= 0]
        np.testing.assert_array_equal(first_rows(cost), np.maximum(expected, 0))


@pytest.mark.parametrize("width", [1, 5, 7, 9])
@pytest.mark.parametrize("rows", [1, 3, 4, 50])
def test_the_median_is_that_of_transformers(rows: int, width: int) -> None:
    from transformers.models.whisper.generation_whisper import _median_filter

    scores = torch.randn(2, 3, 5, rows, generator=torch.Generator().manual_seed(rows))
    scores = torch.cat([scores, scores.round()], dim=2)  # Ties too.
    expected = _median_filter(scores, width)
    assert torch.equal(_median(scores[1, 2], width), expected[1, 2])
