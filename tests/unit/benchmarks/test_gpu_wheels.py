"""The packages for a machine without network: whatever the services need is among them, or there."""

from __future__ import annotations

import re
import tomllib

from benchmarks.gpu.wheels import ROOT

COMES_WITH_TORCH = {
    *(
        "huggingface-hub",
        "jinja2",
        "numpy",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "torch",
        "transformers",
    ),
    "typer",
}
NOT_MEASURED = {"num2words"}


def _name(requirement: str) -> str:
    found = re.match(r"[a-z0-9._-]+", requirement.lower())
    assert found is not None
    return found[0]


def test_every_dependency_of_the_services_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = {_name(each) for each in [*project["dependencies"], *extras["encoder"], *extras["llm"]]}
    lines = (ROOT / "benchmarks/gpu/wheels.txt").read_text(encoding="utf-8").splitlines()
    brought = {_name(line) for line in lines if not line.startswith("#")}
    assert needed - brought - COMES_WITH_TORCH - NOT_MEASURED == set()
