"""What is written about the code is true of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from percept.cli import build_app
from percept.configuration_page import page
from percept.models_table import with_table
from percept.up_settings import settings_classes


def test_the_configuration_page_is_what_the_settings_say(repository: Path) -> None:
    written = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == page(), "docs/configuration.md drifted: run make docs"


def test_the_readme_names_the_families_that_there_are(repository: Path) -> None:
    written = (repository / "README.md").read_text(encoding="utf-8")
    assert written == with_table(written), "the README's table of models drifted: run make docs"


@pytest.mark.parametrize("name", ["up", "encoder", "llm", "gateway"])
def test_every_setting_is_described(name: str) -> None:
    for field, info in settings_classes()[name].model_fields.items():
        assert info.description and info.description.strip().endswith("."), f"{name}: {field}"


def test_a_name_means_the_same_type_in_every_service() -> None:
    """One flag of `percept up` goes to all services that know it, so they must take the same text."""
    kinds: dict[str, set[str]] = {}
    for section, settings_class in settings_classes().items():
        if section == "up":
            continue
        for field, info in settings_class.model_fields.items():
            kinds.setdefault(field, set()).add(str(info.rebuild_annotation()).replace("typing.", ""))
    # Where a service listens or whom it calls is not shared: `up` decides it.
    differing = {
        field: types for field, types in kinds.items() if len(types) > 1 and field not in ("llm", "encoder")
    }
    assert not differing


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]


def documents(repository: Path) -> list[Path]:
    return [
        repository / "README.md",
        repository / "CHANGELOG.md",
        *sorted((repository / "docs").glob("*.md")),
    ]


def test_links_lead_somewhere(repository: Path) -> None:
    for document in documents(repository):
        for target in links(document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_tree_is_the_tree(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^([a-z_]+)/  ", text, flags=re.MULTILINE)
    assert len(named) >= 10
    for folder in named:
        assert (repository / folder).is_dir(), folder


def test_flags_that_documents_name_exist(repository: Path) -> None:
    known = {f"--{field.replace('_', '-')}" for c in settings_classes().values() for field in c.model_fields}
    known |= {f"--no-{flag[2:]}" for flag in known}
    known |= {"--config", "--image", "--video", "--audio", "--url", "--help"}
    for document in documents(repository):
        text = document.read_text(encoding="utf-8")
        for command in re.findall(r"percept (?:up|encoder|llm|gateway|chat)[^\n`]*", text):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", command)) - known
            assert not unknown, f"{document.name}: {command}"


@pytest.mark.parametrize("name", ["encode", "generate", "models"])
def test_flags_of_small_commands_that_documents_name_exist(name: str, repository: Path) -> None:
    (command,) = [
        command for found, command in get_command(build_app(name)).commands.items() if found == name
    ]
    known = {flag for parameter in command.params for flag in parameter.opts}
    found = []
    for document in documents(repository):
        text = document.read_text(encoding="utf-8")
        for line in re.findall(rf"percept {name}\b[^\n`]*", text):
            found.append(line)
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) - known
            assert not unknown, f"{document.name}: {line}"
    assert found


def test_make_targets_that_documents_name_exist(repository: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE))
    for document in documents(repository):
        for target in re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8")):
            assert target in targets, f"{document.name}: make {target}"
