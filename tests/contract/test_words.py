"""One word per idea, and nothing of the machine that a file was written on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "shared",
    "encoder_service",
    "llm_service",
    "gateway",
    "percept",
    "models",
    "benchmarks",
    "examples",
)
TEXTS = {".py", ".md", ".toml", ".yml", ".yaml", ".proto", ".sh", ".json", ""}

WHOLE_NAMES = {"handler", "handlers", "manager", "managers", "helper", "helpers", "util", "utils", "uid"}
"""Names that say nothing about what the thing does."""

WORDS = {"abort": "cancel", "aborted": "cancelled", "uid": "request"}
"""Words for which the glossary has another."""

ENGINE_WORDS = {"page": "block", "pages": "blocks", **WORDS}
"""The same inside the LLM service: elsewhere a page is a page of a file."""

# Written in pieces, so that this file does not hold what it looks for.
TRACES = [
    "/wo" + "rk/",
    "/ro" + "ot/",
    "/ho" + "me/",
    "py" + "pi.org",
    "pythonho" + "sted",
    "download.py" + "torch",
    "registry.np" + "mjs",
    "gh" + "cr.io",
]


def python_files(repository: Path, folders: tuple[str, ...] = PACKAGES) -> list[Path]:
    found = [path for folder in folders for path in (repository / folder).rglob("*.py")]
    return sorted(path for path in found if "_pb2" not in path.name)


def names_defined_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words_of(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)


def test_names_are_words_of_the_glossary(repository: Path) -> None:
    wrong = []
    for path in python_files(repository):
        for name in names_defined_in(ast.parse(path.read_text(encoding="utf-8"))):
            bare = name.strip("_").lower()
            others = ENGINE_WORDS if "llm_service" in path.parts else WORDS
            if bare in WHOLE_NAMES or any(word.lower() in others for word in words_of(name)):
                wrong.append(f"{path.relative_to(repository)}: {name}")
    assert not wrong


def test_the_wire_uses_words_of_the_glossary(repository: Path) -> None:
    """Names and comments of the protos alike."""
    wrong = []
    for path in sorted((repository / "protos").rglob("*.proto")):
        others = ENGINE_WORDS if "llm" in path.parts else WORDS
        for word in re.findall(r"[A-Za-z]+", path.read_text(encoding="utf-8")):
            wrong += [f"{path.name}: {word}" for part in words_of(word) if part.lower() in others]
    assert not wrong


def test_no_module_is_named_for_nothing(repository: Path) -> None:
    assert not [path for path in python_files(repository) if path.stem in WHOLE_NAMES | {"common", "misc"}]


def test_every_module_says_what_it_is(repository: Path) -> None:
    silent = []
    for path in python_files(repository):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(str(path.relative_to(repository)))
    assert not silent


def test_files_and_functions_stay_small(repository: Path) -> None:
    """A file over 400 lines or a function over 50 holds more than one idea."""
    large = []
    for path in python_files(repository):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            large.append(f"{path.relative_to(repository)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 50:
                    large.append(f"{path.relative_to(repository)}: {node.name} has {length} lines")
    assert not large


def own_files(repository: Path) -> Iterator[Path]:
    dropped = {
        ".git",
        ".venv",
        ".training",
        "__pycache__",
        ".hypothesis",
        "build",
        "dist",
        "shared_reference",
    }
    for path in repository.rglob("*"):
        parts = path.relative_to(repository).parts
        hidden = any(part in dropped or part.endswith(("_cache", ".egg-info")) for part in parts)
        if path.is_file() and not hidden and path.suffix in TEXTS and path.stat().st_size < 1_000_000:
            yield path


def test_nothing_of_this_machine_is_written_down(repository: Path) -> None:
    found = []
    for path in own_files(repository):
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{path.relative_to(repository)}: {trace}" for trace in TRACES if trace in text]
    assert not found


def test_nothing_is_left_for_later(repository: Path) -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|raise NotImplemented" + r"Error)\b")
    found = [
        f"{path.relative_to(repository)}"
        for path in python_files(repository, (*PACKAGES, "tests"))
        if marks.search(path.read_text(encoding="utf-8"))
    ]
    assert not found
