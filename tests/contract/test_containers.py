"""The Compose files fit the specification's schema, and the images fit the README.

`compose-spec.json` is the schema of the Compose Specification, published by its
project under the Apache License 2.0, unchanged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from percept.up_settings import settings_classes
from shared.settings import variable_name

FILES = ["docker-compose.yml", "docker-compose.gpu.yml"]


def load(repository: Path, name: str) -> dict[str, Any]:
    content = yaml.safe_load((repository / name).read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("name", FILES)
def test_compose_files_fit_the_schema(repository: Path, name: str) -> None:
    schema = json.loads((repository / "tests" / "contract" / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(load(repository, name))


def test_the_schema_refuses_what_is_no_compose_file(repository: Path) -> None:
    schema = json.loads((repository / "tests" / "contract" / "compose-spec.json").read_text())
    content = load(repository, FILES[0])
    content["services"]["llm"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(content)


def stages(repository: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (repository / "Dockerfile").read_text().splitlines():
        if begin := re.match(r"FROM (\S+) AS (\S+)", line):
            found[begin[2]] = []
        elif line and not line.startswith("#") and found:
            found[list(found)[-1]].append(line.strip())
    return found


def test_what_is_compiled_is_kept_in_the_volume(repository: Path) -> None:
    """The services that compute have a compiler; a new container finds what an old one has compiled."""
    text = (repository / "Dockerfile").read_text()
    for target in ("encoder", "llm"):
        assert f"FROM compiler AS {target}" in text
        assert load(repository, FILES[0])["services"][target]["volumes"] == ["checkpoints:/cache"]
    assert "g++" in " ".join(stages(repository)["compiler"])
    assert "XDG_CACHE_HOME=/cache" in " ".join(stages(repository)["base"])


def test_every_service_has_its_image_and_health_check(repository: Path) -> None:
    services = load(repository, FILES[0])["services"]
    assert set(services) == {"encoder", "llm", "gateway"}
    for name, service in services.items():
        assert service["build"]["target"] == name
        assert name in stages(repository)
        assert service["command"][:2] == ["percept", name]
        assert service["healthcheck"]["test"][:3] == ["CMD", "percept", "health"]


def test_encoders_can_be_scaled(repository: Path) -> None:
    encoder = load(repository, FILES[0])["services"]["encoder"]
    assert not {"container_name", "ports"} & set(encoder)


def test_gpus_are_reserved_in_the_override_alone(repository: Path) -> None:
    assert "nvidia" not in (repository / FILES[0]).read_text()
    for name in ("encoder", "llm"):
        (device,) = load(repository, FILES[1])["services"][name]["deploy"]["resources"]["reservations"][
            "devices"
        ]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", FILES)
def test_every_variable_is_a_setting_of_its_service(repository: Path, name: str) -> None:
    for section, service in load(repository, name)["services"].items():
        known = {variable_name(field) for field in settings_classes()[section].model_fields}
        # The hub's library reads its token by itself.
        assert set(service.get("environment", {})) <= known | {"HF_TOKEN"}, section


def test_the_images_install_what_the_readme_installs(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    for target, extra in (("gateway", ""), ("encoder", "[encoder]"), ("llm", "[llm]")):
        step = f"pip install '.{extra}'" if extra else "pip install ."
        assert f"RUN {step}" in stages(repository)[target]
        assert step in readme


def test_the_gateways_image_has_no_torch(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if re.match(r"torch|transformers|numpy", name)]
    assert "RUN pip install ." in stages(repository)["gateway"]
