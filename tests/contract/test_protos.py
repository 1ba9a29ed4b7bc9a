"""The generated code is what the protos generate, and the protos keep their style."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def sources(repository: Path) -> list[Path]:
    found = sorted(path.relative_to(repository) for path in (repository / "protos").rglob("*.proto"))
    assert found
    return found


def test_generated_code_has_not_drifted(repository: Path, tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [f"--plugin={name}={binaries / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    files = [str(path) for path in sources(repository)]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *plugins, *files]
    subprocess.run(command, cwd=repository, check=True, capture_output=True, timeout=100)
    for path in sources(repository):
        has_service = "\nservice " in (repository / path).read_text()
        for suffix in SUFFIXES if has_service else SUFFIXES[:2]:
            generated = path.with_name(path.stem + suffix)
            committed = (repository / generated).read_bytes()
            assert committed == (tmp_path / generated).read_bytes(), f"{generated} drifted: run make protos"


def test_nothing_generated_is_left_over(repository: Path) -> None:
    stems = {path.with_suffix("") for path in sources(repository)}
    for suffix in SUFFIXES:
        for path in (repository / "protos").rglob(f"*{suffix}"):
            stem = path.relative_to(repository).as_posix().removesuffix(suffix)
            assert Path(stem) in stems, f"{path} has no .proto"


def test_package_is_path(repository: Path) -> None:
    for path in sources(repository):
        package = ".".join(path.parent.parts)
        assert f"\npackage {package};" in (repository / path).read_text(), path


def test_zero_of_every_enum_is_unspecified(repository: Path) -> None:
    for path in sources(repository):
        zeros = re.findall(r"(\w+) = 0;", (repository / path).read_text())
        assert all(name.endswith("_UNSPECIFIED") for name in zeros), path


@pytest.mark.parametrize("kind", ["message", "enum", "service", "rpc"])
def test_every_element_has_a_comment(repository: Path, kind: str) -> None:
    for path in sources(repository):
        lines = (repository / path).read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(rf"\s*{kind} \w+", line) and not re.search(r"Request \{\}$", line):
                # A request that asks one thing is named by its rpc.
                named_by_rpc = re.match(r"message \w+(Request|Response) \{", line)
                assert before.strip().startswith("//") or named_by_rpc, f"{path}: {line}"
