"""How sure Whisper is of an answer: as transformers' scores say it, alone and beside others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.answer_measures import AnswerMeasures
from llm_service.runner.cpu.looking_decoder import CpuLookingDecoder
from shared.families.token_rules import SpeechTask
from tests.families.whisper import build
from tests.integration.test_token_times import Check, in_every_way
from tests.integration.test_whisper import ASKED, COUNT, Asked, World

MEASURED = [Asked(asked.clip, replace(asked.task, from_start=True)) for asked in ASKED]


class MeasuringWorld(World):
    """Also asks transformers how likely its tokens were."""

    def add_measured(self, local: Any, asked: Asked, **sampling: Any) -> int:
        return self.add(local, asked, measured=True, **sampling)

    def silence(self, asked: Asked) -> float:
        """Where the prompt's start token looks at the recording, among all tokens."""
        ids = torch.tensor([self.prompt(asked.task)])
        assert ids[0, -1] == self.model.generation_config.decoder_start_token_id
        with torch.no_grad():
            logits = self.model(input_features=self.features(asked.clip), decoder_input_ids=ids).logits
        token = self.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
        return float(torch.softmax(logits[0, -1].float(), dim=-1)[token])

    def mean_logprob(self, asked: Asked) -> float:
        """Of the answer proper, its end included, in the distribution that rules leave."""
        task = asked.task
        said = {}
        if task.previous_text:
            said["prompt_ids"] = self.processor.get_prompt_ids(task.previous_text, return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(
                input_features=self.features(asked.clip),
                language=task.language or None,
                task="translate" if task.translates else "transcribe",
                return_timestamps=task.timestamps,
                do_sample=False,
                max_new_tokens=COUNT,
                force_unique_generate_call=True,
                output_scores=True,
                return_dict_in_generate=True,
                **said,
            )
        scores = torch.stack(output.scores)[:, 0]
        tokens = output.sequences[0, -len(scores) :]
        found = torch.log_softmax(scores.float(), dim=-1).gather(1, tokens[:, None])
        return float(found.mean())


@pytest.fixture(scope="module", params=["auto", "torch"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MeasuringWorld:
    made = MeasuringWorld(build(tmp_path_factory.mktemp("whisper")), request.param)
    assert isinstance(made.runner._model, CpuLookingDecoder) == (request.param == "auto")
    return made


def measures_of(world: World, local: Any, asked: Asked, sequence_id: int) -> tuple[float, float]:
    """The probability of silence, and the mean, as the service's front makes them of the reports."""
    gathered = AnswerMeasures(len(world.layout.rules(world.prompt(asked.task), asked.task).leading))
    for report in local.front.reports[sequence_id]:
        gathered.add(report)
    message = gathered.message()
    assert message.HasField("no_speech_probability")
    return message.no_speech_probability, message.mean_logprob


@in_every_way
def test_measures_are_those_of_transformers(
    world: MeasuringWorld, changes: dict[str, object], check: Check
) -> None:
    local = world.engine(**changes)
    measured = [world.add_measured(local, asked) for asked in MEASURED]
    plain = [world.add(local, asked) for asked in ASKED]
    again = [world.add_measured(local, asked, top_logprobs=2) for asked in reversed(MEASURED)]
    got = local.run([*measured, *plain, *again])
    assert got == [world.expected(asked) for asked in [*MEASURED, *ASKED, *reversed(MEASURED)]]
    for added, asked in zip([*measured, *again], [*MEASURED, *reversed(MEASURED)], strict=True):
        found = measures_of(world, local, asked, added)
        assert found == pytest.approx((world.silence(asked), world.mean_logprob(asked)), rel=1e-3)
    for added in plain:
        assert all(one.silence is one.allowed_logprob is None for one in local.front.reports[added])
    assert check(local.status), local.status


def test_recordings_are_told_apart(world: MeasuringWorld) -> None:
    """Otherwise equality would show nothing."""
    assert len({round(world.silence(asked), 9) for asked in MEASURED}) == len(MEASURED)
    assert len({round(world.mean_logprob(asked), 6) for asked in MEASURED}) == len(MEASURED)


def test_what_is_known_comes_first_in_the_answer(world: MeasuringWorld) -> None:
    """Asked from the start or with all said, the answer proper is the same."""
    for asked, measured in zip(ASKED, MEASURED, strict=True):
        tokens, said = world.expected(measured), world.prompt(asked.task)
        begun = len(said) - len(world.prompt(measured.task))
        assert tokens[:begun] == said[len(said) - begun :]
        assert tokens[begun:] == world.expected(asked)


def test_temperature_is_left_aside(world: MeasuringWorld) -> None:
    """What is drawn is measured in the distribution that temperature has not changed."""
    asked = MEASURED[1]
    local = world.engine()
    added = [world.add_measured(local, asked, temperature=1.5, seed=seed) for seed in range(4)]
    drawn = local.run(added)
    assert len({tuple(tokens) for tokens in drawn}) > 1
    greedy = world.add_measured(local, asked)
    local.run([greedy])
    first = len(world.layout.rules(world.prompt(asked.task), asked.task).leading)
    likeliest = local.front.reports[greedy][first].allowed_logprob
    for sequence_id in added:
        report = local.front.reports[sequence_id][first]
        assert report.allowed_logprob is not None and likeliest is not None
        assert -math.inf < report.allowed_logprob <= likeliest
        again = report.token_id == local.front.reports[greedy][first].token_id
        assert again == (report.allowed_logprob == pytest.approx(likeliest, abs=1e-5))


@pytest.mark.parametrize("times", [False, True])
def test_english_alone(tmp_path: Path, times: bool) -> None:
    own = MeasuringWorld(build(tmp_path, english=True))
    local = own.engine()
    asked = Asked(2, SpeechTask(timestamps=times, from_start=True))
    assert own.prompt(asked.task) == [own.model.generation_config.decoder_start_token_id]
    added = own.add_measured(local, asked)
    plain = own.add(local, Asked(2, SpeechTask(timestamps=times)))
    got, as_before = local.run([added, plain])
    begun = len(own.layout.rules(own.prompt(asked.task), asked.task).leading)
    assert got[begun:] == as_before and begun == (0 if times else 1)
    silence, _ = measures_of(own, local, asked, added)
    assert silence == pytest.approx(own.silence(asked), rel=1e-3)
