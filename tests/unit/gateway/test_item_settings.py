"""Whose settings an item gets, and that equal settings are equal texts."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from gateway.item_settings import SettingsRules, request_path, unknown_names
from gateway.media_io import MediaIo
from gateway.settings import GatewaySettings
from shared.errors import InvalidRequestError
from shared.families.catalogue import FamilyFacts

FACTS = FamilyFacts(
    "imagined",
    "imagined:Family",
    ("org/imagined",),
    modalities=("image", "video"),
    settings=("max_pixels", "num_crops"),
    video_settings=("max_pixels",),
)
NO_VIDEO = FamilyFacts("plain", "plain:Family", ("org/plain",), settings=("max_pixels",))


def test_nothing_said_is_no_text() -> None:
    settings = SettingsRules().for_request(None, None, FACTS)
    assert settings.texts == {"image": "", "video": "", "audio": ""}
    assert settings.frame_list_text == "" and settings.frame_rate is None and not settings.from_request
    assert SettingsRules().for_request({}, {}, FACTS).texts["video"] == ""
    # What is said is said: the default may be the model's own rate.
    said = '{"media_io":{"num_frames":32}}'
    assert SettingsRules().for_request(None, {"num_frames": 32}, FACTS).texts["video"] == said
    assert SettingsRules(video={"num_frames": 32}).for_request(None, None, FACTS).texts["video"] == said


def test_a_name_goes_to_the_modalities_that_take_it() -> None:
    rules = SettingsRules(processor={"num_crops": 4, "max_pixels": 100})
    texts = rules.for_request(None, None, FACTS).texts
    assert texts == {
        "image": '{"max_pixels":100,"num_crops":4}',
        "video": '{"max_pixels":100}',
        "audio": "",
    }
    assert rules.for_request(None, None, NO_VIDEO).texts == {
        "image": '{"max_pixels":100}',
        "video": "",
        "audio": "",
    }


def test_a_modalitys_own_goes_before_what_is_for_all() -> None:
    rules = SettingsRules(processor={"max_pixels": 100, "video": {"max_pixels": 50}})
    texts = rules.for_request(None, None, FACTS).texts
    assert (texts["image"], texts["video"]) == ('{"max_pixels":100}', '{"max_pixels":50}')


def test_the_request_goes_before_the_server() -> None:
    rules = SettingsRules({"max_pixels": 100, "num_crops": 4}, {"num_frames": 8}, allowed=True)
    settings = rules.for_request({"num_crops": 2}, {"fps": 2}, FACTS)
    assert settings.texts["image"] == '{"max_pixels":100,"num_crops":2}'
    assert settings.texts["video"] == '{"max_pixels":100,"media_io":{"fps":2}}'
    assert settings.from_request == {"mm_processor_kwargs", "media_io_kwargs"}
    assert rules.for_request(None, None, FACTS).texts["video"] == (
        '{"max_pixels":100,"media_io":{"num_frames":8}}'
    )


def test_of_a_list_of_frames_fps_is_its_rate() -> None:
    settings = SettingsRules().for_request(None, {"fps": 2.5}, FACTS)
    assert settings.frame_rate == 2.5
    assert settings.frame_list_text == '{"media_io":{"num_frames":-1}}'
    both = SettingsRules().for_request(None, {"fps": 2, "num_frames": 4}, FACTS)
    assert (both.frame_rate, both.frame_list_text) == (2, '{"media_io":{"num_frames":4}}')


def test_requests_may_not_where_the_server_does_not_say_so() -> None:
    with pytest.raises(InvalidRequestError, match="--trust-request-mm-kwargs") as caught:
        SettingsRules().for_request({"max_pixels": 1}, None, FACTS)
    assert (caught.value.param, caught.value.code) == ("mm_processor_kwargs", "unsupported_parameter")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"unheard_of": 1}, "mm_processor_kwargs.unheard_of"),
        ({"media_io": {}}, "mm_processor_kwargs.media_io"),
        ({"video": {"num_crops": 1}}, "mm_processor_kwargs.video.num_crops"),
        ({"audio": {"rate": 1}}, "mm_processor_kwargs.audio.rate"),
        ({"image": 3}, "mm_processor_kwargs.image"),
        ({"max_pixels": "x" * 5000}, "mm_processor_kwargs"),
        ({"max_pixels": json.loads("[" * 500 + "]" * 500)}, None),
    ],
)
def test_names_that_no_modality_takes(given: dict[str, object], param: str | None) -> None:
    rules = SettingsRules(allowed=True)
    if param is None:
        assert rules.for_request(given, None, FACTS).texts["image"]
        return
    with pytest.raises(InvalidRequestError) as caught:
        rules.for_request(given, None, FACTS)
    assert caught.value.param == param


def test_the_servers_own_unknown_names_are_told() -> None:
    given = {"num_crops": 1, "foo": 2, "video": {"num_crops": 3}}
    assert list(unknown_names(given, FACTS)) == [
        ("foo", ["max_pixels", "num_crops"]),
        ("video.num_crops", ["max_pixels"]),
    ]
    assert list(unknown_names(given, None)) == []


def test_equal_values_are_one_text() -> None:
    first = MediaIo.model_validate({"video": {"fps": 2.0, "num_frames": -1}}).video_values()
    second = MediaIo.model_validate({"video": {"num_frames": -1, "fps": 2}}).video_values()
    rules = SettingsRules()
    assert rules.for_request(None, first, FACTS) == rules.for_request(None, second, FACTS)
    assert MediaIo.model_validate({"video": {"fps": -1}}).video_values() == {}


def test_paths_of_settings() -> None:
    assert request_path("item.settings.max_pixels") == "mm_processor_kwargs.max_pixels"
    assert request_path("item.settings") == "mm_processor_kwargs"
    assert request_path("item.settings.media_io.fps") == "media_io_kwargs.video.fps"
    assert request_path("item.key") is None
    assert request_path("") is None


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', "[1]", "{", '{"a": 1e400}'])
def test_what_no_item_could_carry_is_no_setting_of_a_server(text: str) -> None:
    with pytest.raises(ValidationError, match="mm_processor_kwargs"):
        GatewaySettings(llm=("127.0.0.1:1",), mm_processor_kwargs=text)


HEARS = FamilyFacts(
    "hears",
    "hears:Family",
    ("org/hears",),
    modalities=("image", "audio"),
    settings=("num_crops",),
    audio_settings=("mode",),
    audio_settings_beside_pictures={"mode": "both"},
)


def test_a_recording_beside_pictures_has_the_familys_settings_for_that() -> None:
    rules = SettingsRules(processor={"num_crops": 4}, allowed=True)
    settings = rules.for_request(None, None, HEARS)
    assert settings.among({"audio"}).texts["audio"] == ""
    beside = settings.among({"image", "audio"})
    assert beside.texts == {"image": '{"num_crops":4}', "video": "", "audio": '{"mode":"both"}'}
    assert settings.texts["audio"] == "", "the settings themselves stay as they are"
    asked = rules.for_request({"audio": {"mode": "one"}}, None, HEARS)
    assert asked.among({"image", "audio"}).texts["audio"] == '{"mode":"one"}'


def test_other_families_do_not_look_at_what_stands_beside() -> None:
    for facts in (FACTS, None):
        settings = SettingsRules().for_request(None, None, facts)
        assert settings.among({"image", "audio"}) is settings
