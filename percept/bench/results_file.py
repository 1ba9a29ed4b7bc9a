"""Results as files: JSON that holds every request, so that figures can be made again.

Knows the file's form. What is not as it should be in a file is the reader's mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from percept.bench.records import RunResult
from percept.bench.summary import Slo, Summary, summarise
from shared.errors import InvalidRequestError

FORMAT: Literal["percept-bench/1"] = "percept-bench/1"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """What a file holds.

    Attributes:
        format: its version.
        generator_cpu_share: CPU seconds per second that the generator took; 1 is a whole core.
        summary: the figures.
        result: all requests.
    """

    format: Literal["percept-bench/1"]
    generator_cpu_share: float
    summary: Summary
    result: RunResult


_FILE = TypeAdapter(ResultFile)


def to_json(result: RunResult, slo: Slo | None = None) -> str:
    """A run and its summary as JSON text."""
    held = ResultFile(FORMAT, result.generator.cpu_share, summarise(result, slo), result)
    return _FILE.dump_json(held).decode()


def write_result(path: Path, result: RunResult, slo: Slo | None = None) -> None:
    """Writes a run; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(result, slo), encoding="utf-8")


def read_result(path: Path) -> ResultFile:
    """Reads a run back.

    Raises:
        InvalidRequestError: no such file, or none that `write_result` wrote.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{path} is no result of percept bench: {where} {first['msg']}") from error
