"""Settings: one declaration gives the field, the flag, the variable and the file key.

A service declares a frozen subclass of `ServiceSettings`; `load_settings` fills
it from flags, `PERCEPT_*` variables, a TOML or YAML file and the defaults, the
earlier over the later. A text of a flag or a variable means the same as the
value in a file. What is unknown or malformed is a `SettingsError` that names
its source; nothing is ignored silently.

Knows how settings are found, parsed and written. Does not know what any setting
means, nor the command line that reads them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.rpc.addresses import checked_address

PREFIX = "PERCEPT_"
"""Prefix of the environment variables that are settings."""


class SettingsError(Exception):
    """Settings that cannot be used. `str(error)` has one line for each mistake."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


def _split_list(value: Any) -> Any:
    """Takes "a,b" for ("a", "b"); leaves anything else to the type's own check."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _split_counts(value: Any) -> Any:
    """Takes "image=4,video=0" or JSON for {"image": 4, "video": 0}."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"broken JSON: {error}") from error
    counts: dict[str, Any] = {}
    for part in _split_list(value):
        name, separator, count = part.partition("=")
        if not separator:
            raise ValueError('write it as "image=4", or as JSON: {"image": 4}')
        counts[name.strip()] = count.strip()
    return counts


def _as_json_object(value: Any) -> Any:
    """Takes a text or a table for the text of a JSON object, sorted and without spaces."""
    if value is None or value == "":
        return ""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"broken JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError('write it as a JSON object, for example {"num_crops": 4}')
    # Infinities and NaN, which Python would write, are no JSON: no request could carry them on.
    return json.dumps(parsed, sort_keys=True, separators=(",", ":"), allow_nan=False)


ListenAddress = Annotated[str, AfterValidator(checked_address)]
"""HOST:PORT to listen on; port 0 takes a free one."""

CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
"""A tuple of texts, written "a,b" in flags and variables, as a list in files."""

ModalityName = Literal["image", "video", "audio"]

ItemLimits = Annotated[dict[ModalityName, Annotated[int, Field(ge=0)]], BeforeValidator(_split_counts)]
"""How many items of a modality one prompt may hold: "image=4" or {"image": 4}."""

JsonObject = Annotated[str, BeforeValidator(_as_json_object)]
"""The text of a JSON object, "" for none; a table in files."""

Device = Literal["auto", "cpu", "cuda"]
DataTypeName = Literal["auto", "float32", "bfloat16", "float16"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServiceSettings(BaseSettings):
    """Base of every service's settings; every field carries a description.

    Constructing one directly takes the arguments and the defaults only, so that
    tests do not depend on the environment: `load_settings` reads all sources.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
        validate_default=True,
        protected_namespaces=(),
    )

    log_level: LogLevel = Field("info", description="Least severe log lines that are written.")
    default_deadline_s: float = Field(
        600.0, gt=0, description="Deadline of a call whose caller set none, in seconds."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves the arguments as the only source; see `load_settings`."""
        return (init_settings,)


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def flag_name(name: str) -> str:
    """The command-line flag of a field, for example "--max-num-seqs"."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """The environment variable of a field, for example "PERCEPT_MAX_NUM_SEQS"."""
    return PREFIX + name.upper()


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Content of a --config file.

    Attributes:
        common: values for every service that knows their name.
        tables: section name to values for that service alone.
    """

    common: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def values_for(self, section: str) -> dict[str, Any]:
        """What a service reads: its own table over the common values."""
        return {**self.common, **self.tables.get(section, {})}


def read_config_file(path: Path, sections: Collection[str]) -> ConfigFile:
    """Reads a TOML or YAML file. Keys may be written with "-" or "_".

    Args:
        sections: names whose tables belong to one service.

    Raises:
        SettingsError: the file is missing, broken or no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsError([f"--config {path}: {error}"]) from error
    if content is None:
        return ConfigFile()
    if not isinstance(content, dict):
        raise SettingsError([f"--config {path}: the file must hold names and values"])
    named = _with_underscores(content)
    tables = {key: value for key, value in named.items() if key in sections and isinstance(value, dict)}
    return ConfigFile(
        common={key: value for key, value in named.items() if key not in tables},
        tables={key: _with_underscores(table) for key, table in tables.items()},
    )


def _with_underscores(table: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in table.items()}


def load_settings(
    settings_class: type[SettingsT],
    flags: Mapping[str, Any],
    *,
    section: str,
    config: ConfigFile | None = None,
    environment: Mapping[str, str] | None = None,
) -> SettingsT:
    """Builds a service's settings: flags over variables over the file over defaults.

    Args:
        flags: field name to text (or value) of the flags that were given; None is
            a flag that was not given.
        section: the service's table of the file.
        config: the file, where there is one.
        environment: variables; those of this process when None.

    Raises:
        SettingsError: a value is malformed or out of range, or a required one is
            missing. One line for each.
    """
    sources: list[tuple[str, Mapping[str, Any], bool]] = [
        ("file", (config or ConfigFile()).values_for(section), True),
        ("variable", _from_environment(settings_class, environment), False),
        ("flag", {flag: value for flag, value in flags.items() if value is not None}, False),
    ]
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    mistakes: list[str] = []
    for source, given, typed in sources:
        for name, info in settings_class.model_fields.items():
            if name not in given:
                continue
            names[name] = _name_in(source, name)
            try:
                values[name] = _parse(info, given[name], typed=typed)
            except ValidationError as error:
                mistakes.extend(_explain(names[name], error))
    if mistakes:
        raise SettingsError(mistakes)
    try:
        return settings_class(**values)
    except ValidationError as error:
        raise SettingsError(_explain_whole(names, error)) from error


def _from_environment(
    settings_class: type[ServiceSettings], environment: Mapping[str, str] | None
) -> dict[str, Any]:
    source = EnvSettingsSource(settings_class)
    if environment is not None:
        source.env_vars = {name.lower(): text for name, text in environment.items() if text}
    return source()


def _name_in(source: str, name: str) -> str:
    if source == "flag":
        return flag_name(name)
    if source == "variable":
        return variable_name(name)
    return f'"{name.replace("_", "-")}" in the --config file'


def _parse(info: FieldInfo, value: Any, *, typed: bool) -> Any:
    """Parses one value: strictly where the source has types, by text where it has none."""
    adapter: TypeAdapter[Any] = TypeAdapter(info.rebuild_annotation())
    if typed:
        # JSON's strict rules are the file's: no text for a number, no number for a flag.
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    return adapter.validate_python(value)


def _explain(name: str, error: ValidationError) -> list[str]:
    lines = []
    for mistake in error.errors(include_url=False):
        message = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message[:1].lower()}{message[1:]} (it is {_shown(mistake['input'])})")
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _explain_whole(names: Mapping[str, str], error: ValidationError) -> list[str]:
    lines = []
    for mistake in error.errors(include_url=False):
        name = str(mistake["loc"][0]) if mistake["loc"] else ""
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "missing":
            lines.append(f"{flag_name(name)} is required: give the flag or set {variable_name(name)}")
        elif name:
            lines.append(f"{names.get(name, flag_name(name))}: {message}")
        else:
            lines.append(message)
    return lines


def check_names(
    classes: Mapping[str, type[ServiceSettings]],
    *,
    config: ConfigFile | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Refuses variables and file keys that no service knows.

    One environment and one file may serve all services, so a name is unknown only
    when none of `classes` (section name to settings class) has it.

    Raises:
        SettingsError: names each unknown one, and the nearest known.
    """
    known = {name for settings_class in classes.values() for name in settings_class.model_fields}
    variables = {variable_name(name) for name in known} | {PREFIX + "CONFIG"}
    environment = os.environ if environment is None else environment
    mistakes = [
        f"{name}: no setting has this name{_nearest(name, variables)}; unset it"
        for name in sorted(environment)
        if name.upper().startswith(PREFIX) and name.upper() not in variables
    ]
    config = config or ConfigFile()
    mistakes += [_unknown_key(key, key, known) for key in config.common if key not in known]
    for section, table in config.tables.items():
        own = set(classes[section].model_fields)
        mistakes += [_unknown_key(f"{section}.{key}", key, own) for key in table if key not in own]
    if mistakes:
        raise SettingsError(mistakes)


def _unknown_key(shown: str, key: str, known: Iterable[str]) -> str:
    return f'"{shown}" in the --config file: no setting has this name{_nearest(key, known)}; remove it'


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def to_environment(settings: ServiceSettings) -> dict[str, str]:
    """Writes settings as variables that `load_settings` reads back to the same.

    Fields at their defaults are left out.
    """
    variables = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value is None or (not info.is_required() and value == info.get_default(call_default_factory=True)):
            continue
        variables[variable_name(name)] = to_text(value)
    return variables


def to_text(value: Any) -> str:
    """Writes a setting's value the way that flags and variables take it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={count}" for name, count in value.items())
    return str(value)
