"""From a settings class to command-line options: flag, help text, default.

Knows typer and the declarations. Does not know what a setting means, nor where
else its value may come from: `shared.settings.load_settings` does.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from shared.settings import ServiceSettings, flag_name, to_text, variable_name


def fields_of(*classes: type[ServiceSettings], without: frozenset[str] = frozenset()) -> dict[str, FieldInfo]:
    """Collects the fields of several settings classes.

    Where several classes declare a name, the first one's type and default count.
    So does its description if it is the first of all, which speaks for the others;
    else the description says what each of them means by the name.
    """
    declared: dict[str, list[FieldInfo]] = {}
    for settings_class in classes:
        for name, info in settings_class.model_fields.items():
            if name not in without:
                declared.setdefault(name, []).append(info)
    own = classes[0].model_fields
    return {name: infos[0] if name in own else _joined(infos) for name, infos in declared.items()}


def _joined(infos: Sequence[FieldInfo]) -> FieldInfo:
    texts = dict.fromkeys(info.description or "" for info in infos)
    if len(texts) == 1:
        return infos[0]
    joined = copy(infos[0])
    joined.description = " / ".join(texts)
    return joined


def with_options(
    run: Callable[[dict[str, Any], Path | None], None], fields: Mapping[str, FieldInfo]
) -> Callable[..., None]:
    """Makes a typer command of `run(flags, config_file)` with one option for each field.

    Options stay text, or None where they were not given: `load_settings` parses
    them, so that a flag, a variable and a file complain in the same words.
    """

    def command(**given: Any) -> None:
        config = given.pop("config")
        run({name: value for name, value in given.items() if value is not None}, config)

    parameters = [_parameter(name, info) for name, info in fields.items()]
    parameters.append(_config_parameter())
    command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    switch = is_switch(info.annotation)
    flag = flag_name(name)
    option: Any = typer.Option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        help=f"{info.description} [{shown_default(info)}; {variable_name(name)}]",
        metavar=None if switch else type_name(info.annotation),
        show_default=False,
    )
    kind: Any = bool if switch else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _config_parameter() -> inspect.Parameter:
    option: Any = typer.Option(
        "--config",
        help="TOML or YAML file of settings. Flags and PERCEPT_ variables go before it. [PERCEPT_CONFIG]",
        metavar="FILE",
        show_default=False,
        envvar="PERCEPT_CONFIG",
        show_envvar=False,
    )
    return inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )


def type_name(annotation: Any) -> str:
    """A field's type in words for help and documentation, for example "INTEGER"."""
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false", Path: "PATH"}
    if annotation in names:
        return names[annotation]
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin is Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return "|".join(type_name(arm) for arm in typing.get_args(annotation) if arm is not type(None))
    if origin is tuple:
        return "A,B,..."
    if origin is dict:
        return "NAME=COUNT,..."
    return "TEXT"


def is_switch(annotation: Any) -> bool:
    """Says whether a field is a plain yes or no: its flag then takes no value."""
    return annotation is bool


def shown_default(info: FieldInfo) -> str:
    """A field's default in words: "required", "none", "computed" or its text."""
    if info.is_required():
        return "required"
    if info.default_factory is not None and not isinstance(info.default_factory, type):
        # It depends on the machine; the description says how.
        return "computed"
    value = info.get_default(call_default_factory=True)
    return to_text(value) if value is not None and to_text(value) != "" else "none"
