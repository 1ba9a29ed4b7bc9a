"""The catalogue says what the families do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from encoder_service.media.worker import WITH_SOUND
from shared.checkpoint import read_checkpoint
from shared.errors import BadEmbeddingsError, InvalidRequestError
from shared.families import load_family
from shared.families.base import RawTensor
from shared.families.catalogue import CATALOGUE, FamilyFacts, facts_of
from shared.families.writes_speech import WritesSpeech
from tests.families import all_cases
from tests.items import features_of, item

ALL = pytest.mark.parametrize("facts", CATALOGUE, ids=lambda facts: facts.model_type)


def test_every_family_is_tested_and_in_order() -> None:
    names = [facts.model_type for facts in CATALOGUE]
    assert names == sorted(names)
    assert set(names) == set(all_cases())


@ALL
def test_the_class_is_there_and_the_facts_are_whole(facts: FamilyFacts) -> None:
    module, name = facts.location.split(":")
    assert callable(getattr(import_module(f"shared.families.{module}"), name))
    assert facts_of(facts.model_type) is facts
    assert facts.checkpoints
    assert facts.embedding_fields.keys() <= set(facts.modalities)


@ALL
def test_modalities_are_the_familys(facts: FamilyFacts, tiny_checkpoint: Callable[[str], Path]) -> None:
    family = load_family(read_checkpoint(tiny_checkpoint(facts.model_type)))
    assert facts.modalities == family.modalities


@ALL
def test_embedding_fields_are_those_that_the_family_accepts(
    facts: FamilyFacts, tiny_checkpoint: Callable[[str], Path]
) -> None:
    preprocessor = load_family(read_checkpoint(tiny_checkpoint(facts.model_type))).preprocessor()
    tensor = RawTensor("float32", (1, 1), bytes(4))
    for modality, fields in facts.embedding_fields.items():
        for missing in fields.required:
            given = {name: tensor for name in fields.names if name != missing}
            with pytest.raises(BadEmbeddingsError):
                preprocessor.accept_embeddings(modality, given)
        with pytest.raises(BadEmbeddingsError) as caught:
            preprocessor.accept_embeddings(
                modality, {name: tensor for name in (*fields.required, "unheard_of")}
            )
        assert caught.value.param == "unheard_of"
        assert all(name in caught.value.message for name in fields.names)


def test_the_catalogue_needs_nothing_heavy() -> None:
    probe = (
        "import sys, shared.families.catalogue\n"
        "print({'torch', 'transformers', 'numpy', 'grpc'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


@ALL
def test_settings_that_no_modality_lists_are_refused(
    facts: FamilyFacts, tiny_checkpoint: Callable[[str], Path]
) -> None:
    preprocessor = load_family(read_checkpoint(tiny_checkpoint(facts.model_type))).preprocessor()
    assert "media_io" not in facts.settings_of("image") + facts.settings_of("video")
    for modality in facts.modalities:
        shown = item(all_cases()[facts.model_type], 1, 0, modality)
        with pytest.raises(InvalidRequestError) as caught:
            features_of(preprocessor, shown, {"unheard_of": 1})
        assert type(caught.value) is InvalidRequestError
        for name in set(facts.settings_of(modality)) - {WITH_SOUND}:
            # A name that is listed is known: what is refused is the value.
            with pytest.raises(InvalidRequestError) as caught:
                features_of(preprocessor, shown, {name: [["nonsense"]]})
            assert "unknown" not in caught.value.message, name


def test_sound_of_videos_is_for_families_that_hear() -> None:
    for facts in CATALOGUE:
        assert WITH_SOUND not in facts.settings_of("image") + facts.settings_of("audio")
        if WITH_SOUND in facts.settings_of("video"):
            assert "audio" in facts.modalities, facts.model_type


def test_families_that_hear_are_asked_to_write_down_in_their_own_way(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    for facts in CATALOGUE:
        assert (facts.speech is not None) == ("audio" in facts.modalities), facts.model_type
        if facts.speech is not None:
            layout = load_family(read_checkpoint(tiny_checkpoint(facts.model_type))).prompt_layout()
            assert isinstance(layout, WritesSpeech) == (facts.speech.instructions is None)
