"""One declaration, four names: flag, variable, file key, field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from shared.settings import (
    CommaList,
    ConfigFile,
    ItemLimits,
    ServiceSettings,
    SettingsError,
    check_names,
    load_settings,
    read_config_file,
    to_environment,
)


class OvenSettings(ServiceSettings):
    """Settings with one field of each type that services use."""

    model: str = Field(description="Required.")
    racks: int | None = Field(None, ge=1, description="A whole number.")
    heat: float = Field(1.0, gt=0, description="A number.")
    fan: bool = Field(True, description="A switch.")
    peers: CommaList = Field((), description="A list.")
    limits: ItemLimits = Field({"image": 4}, description="Counts.")
    folder: Path | None = Field(None, description="A path.")


def as_file(config: dict[str, object]) -> ConfigFile:
    own = config.get("oven", {})
    assert isinstance(own, dict)
    return ConfigFile({key: value for key, value in config.items() if key != "oven"}, {"oven": own})


def load(flags: dict[str, object], config: dict[str, object], variables: dict[str, str]) -> OvenSettings:
    return load_settings(OvenSettings, flags, section="oven", config=as_file(config), environment=variables)


def mistakes_of(flags: dict[str, object], config: dict[str, object], variables: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(flags, config, variables)
    return caught.value.mistakes


def test_flags_go_before_variables_before_the_file_before_defaults() -> None:
    config: dict[str, object] = {"model": "file", "racks": 1, "heat": 2.5, "fan": False}
    variables = {"PERCEPT_MODEL": "variable", "PERCEPT_RACKS": "2"}
    settings = load({"model": "flag"}, config, variables)
    assert (settings.model, settings.racks, settings.heat, settings.fan) == ("flag", 2, 2.5, False)
    assert settings.limits == {"image": 4}


def test_a_services_own_table_goes_before_the_top_level_and_below_variables() -> None:
    config: dict[str, object] = {"model": "top", "racks": 1, "oven": {"model": "own", "racks": 3}}
    settings = load({}, config, {"PERCEPT_RACKS": "2"})
    assert (settings.model, settings.racks) == ("own", 2)


def test_text_means_the_same_as_typed_values() -> None:
    text = load(
        {"model": "m", "racks": "3", "heat": "2", "fan": "false", "peers": "a:1, b:2", "limits": "image=2"},
        {},
        {},
    )
    typed = load(
        {},
        {"model": "m", "racks": 3, "heat": 2, "fan": False, "peers": ["a:1", "b:2"], "limits": {"image": 2}},
        {},
    )
    assert text == typed
    assert text.peers == ("a:1", "b:2")


def test_counts_may_be_json() -> None:
    assert load({"model": "m", "limits": '{"image": 0, "video": 7}'}, {}, {}).limits == {
        "image": 0,
        "video": 7,
    }


def test_an_empty_variable_counts_as_unset() -> None:
    assert load({"model": "m"}, {}, {"PERCEPT_RACKS": ""}).racks is None


@pytest.mark.parametrize(
    ("flags", "config", "variables", "name"),
    [
        ({"model": "m", "racks": "many"}, {}, {}, "--racks"),
        ({"model": "m", "racks": "0"}, {}, {}, "--racks"),
        ({"model": "m", "limits": "image"}, {}, {}, "--limits"),
        ({"model": "m", "limits": "imag=1"}, {}, {}, "--limits"),
        ({"model": "m", "limits": "{"}, {}, {}, "--limits"),
        ({"model": "m"}, {}, {"PERCEPT_HEAT": "warm"}, "PERCEPT_HEAT"),
        ({"model": "m"}, {}, {"PERCEPT_FAN": "perhaps"}, "PERCEPT_FAN"),
        ({"model": "m"}, {"racks": "3"}, {}, '"racks" in the --config file'),
        ({"model": "m"}, {"racks": True}, {}, '"racks" in the --config file'),
        ({"model": "m"}, {"fan": 1}, {}, '"fan" in the --config file'),
        ({"model": "m"}, {"log_level": "loud"}, {}, '"log-level" in the --config file'),
    ],
)
def test_malformed_values_name_their_source(
    flags: dict[str, object], config: dict[str, object], variables: dict[str, str], name: str
) -> None:
    assert [line for line in mistakes_of(flags, config, variables) if line.startswith(name)]


def test_a_missing_required_setting_says_how_to_give_it() -> None:
    assert mistakes_of({}, {}, {}) == ["--model is required: give the flag or set PERCEPT_MODEL"]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes_of({"model": "m", "racks": "x"}, {"fan": "no"}, {"PERCEPT_HEAT": "y"})) == 3


def test_unknown_names_are_refused_with_the_nearest_known() -> None:
    with pytest.raises(SettingsError) as caught:
        check_names(
            {"oven": OvenSettings},
            config=as_file({"modell": "x", "oven": {"rack": 1}}),
            environment={"PERCEPT_RAKS": "2", "HOME": "/h", "PERCEPT_CONFIG": "file"},
        )
    assert [line.split(":")[0] for line in caught.value.mistakes] == [
        "PERCEPT_RAKS",
        '"modell" in the --config file',
        '"oven.rack" in the --config file',
    ]
    assert "did you mean PERCEPT_RACKS?" in caught.value.mistakes[0]


def test_settings_survive_the_way_through_variables() -> None:
    settings = OvenSettings(
        model="m",
        racks=3,
        heat=0.25,
        fan=False,
        peers=("a:1", "b:2"),
        limits={"video": 1},
        folder=Path("/x y"),
    )
    assert load({}, {}, to_environment(settings)) == settings


def test_defaults_are_not_written_as_variables() -> None:
    assert to_environment(OvenSettings(model="m")) == {"PERCEPT_MODEL": "m"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.toml", 'model = "m"\nlog-level = "debug"\n[oven]\nmax-racks = 3\n'),
        ("settings.yaml", "model: m\nlog-level: debug\noven:\n  max-racks: 3\n"),
    ],
)
def test_files_are_toml_or_yaml_and_keys_may_have_dashes(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    config = read_config_file(path, {"oven"})
    assert config == ConfigFile({"model": "m", "log_level": "debug"}, {"oven": {"max_racks": 3}})
    assert config.values_for("oven") == {"model": "m", "log_level": "debug", "max_racks": 3}


@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", "model = "), ("a.yaml", "- x\n"), ("a.yaml", "{"), ("none", None)]
)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=name):
        read_config_file(path, ())


def test_settings_are_frozen_and_strict() -> None:
    settings = OvenSettings(model="m")
    with pytest.raises(ValidationError):
        settings.model = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        OvenSettings(model="m", colour="red")  # type: ignore[call-arg]


def test_constructing_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPT_RACKS", "9")
    assert OvenSettings(model="m").racks is None
