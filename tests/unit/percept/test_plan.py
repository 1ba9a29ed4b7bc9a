"""The plan of `percept up`: cores, ports, and which setting goes where."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from percept.launcher.plan import Plan, make_plan, split_cores
from percept.launcher.process import service_environment
from percept.launcher.ready import EXAMPLE_RECORDING, EXAMPLE_REQUEST, example_command, ready_line
from percept.launcher.shared_paths import SharedPaths
from percept.up_settings import UpSettings
from shared.settings import ConfigFile, SettingsError
from tests.stack import free_port


def plan_of(flags: dict[str, str] | None = None, config: ConfigFile | None = None, **up: object) -> Plan:
    settings = UpSettings(**{"model": "some-model", "port": free_port(), **up})  # type: ignore[arg-type]
    return make_plan(settings, flags or {}, config or ConfigFile())


@pytest.mark.parametrize(
    ("cores", "services", "expected"), [(1, 1, 1), (2, 1, 2), (16, 1, 16), (16, 2, 8), (2, 4, 1)]
)
def test_services_of_a_kind_share_all_cores(cores: int, services: int, expected: int) -> None:
    assert split_cores(cores, services) == expected


def test_encoders_and_llms_share_one_table_of_cores_and_one_folder_of_rows() -> None:
    flags: dict[str, str] = {}
    up = UpSettings(model="some-model", port=free_port(), encoders=2)
    plan = make_plan(up, flags, ConfigFile(), SharedPaths("/somewhere/table", "/somewhere/rows"))
    for name, path in (("shared_cores", "/somewhere/table"), ("shared_rows", "/somewhere/rows")):
        assert [getattr(service.settings, name, None) for service in plan.services] == [path] * 3 + [None]


def test_every_service_gets_its_place_and_its_peers() -> None:
    plan = plan_of(encoders=2, llms=2)
    assert [service.name for service in plan.services] == [
        "encoder-1",
        "encoder-2",
        "llm-1",
        "llm-2",
        "gateway",
    ]
    assert len({service.address for service in plan.services}) == 5
    gateway = plan.services[-1].settings
    assert gateway.encoder == tuple(s.address for s in plan.services[:2])  # type: ignore[attr-defined]
    assert gateway.llm == tuple(s.address for s in plan.services[2:4])  # type: ignore[attr-defined]
    # An encoder delivers to our LLMs and to nobody else.
    assert plan.services[0].settings.llm == gateway.llm  # type: ignore[attr-defined]


def test_flags_reach_the_services_that_have_them() -> None:
    plan = plan_of(
        {
            "max_num_seqs": "7",
            "cache_gib": "0.25",
            "api_key": "k",
            "dtype": "float32",
            "limit_mm_per_prompt": "image=2",
        }
    )
    encoder, llm, gateway = (service.settings for service in plan.services)
    assert (llm.max_num_seqs, encoder.cache_gib, gateway.api_key) == (7, 0.25, ("k",))  # type: ignore[attr-defined]
    assert encoder.dtype == llm.dtype == "float32"  # type: ignore[attr-defined]
    assert llm.limit_mm_per_prompt == gateway.limit_mm_per_prompt == {"image": 2}  # type: ignore[attr-defined]


def test_the_config_file_reaches_the_services() -> None:
    plan = plan_of(config=ConfigFile({"max_num_seqs": 5}, {"encoder": {"dtype": "bfloat16"}}))
    encoder, llm, _ = (service.settings for service in plan.services)
    assert (llm.max_num_seqs, encoder.dtype, llm.dtype) == (5, "bfloat16", "auto")  # type: ignore[attr-defined]


def test_mistakes_of_all_services_are_told() -> None:
    with pytest.raises(SettingsError) as caught:
        plan_of({"max_num_seqs": "none", "cache_gib": "-1", "limit_mm_per_prompt": "pictures=3"})
    names = {line.split(":")[0] for line in caught.value.mistakes}
    assert names == {"--max-num-seqs", "--cache-gib", "--limit-mm-per-prompt"}


def test_the_bundled_model_goes_by_its_name() -> None:
    plan = plan_of(model="percept-tiny")
    llm = plan.services[1].settings
    assert llm.served_model_name == ("percept-tiny",)  # type: ignore[attr-defined]
    assert Path(llm.model).parts[-2:] == ("models", "percept-tiny")  # type: ignore[attr-defined]
    assert plan.model_name == "percept-tiny"


def test_a_taken_port_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port}: the port is in use"):
            plan_of(port=port)


def test_settings_travel_as_variables_and_foreign_ones_stay_out() -> None:
    llm = plan_of({"max_num_seqs": "7"}, llm_threads=3).services[1]
    environment = service_environment(llm, {"HOME": "/h", "PERCEPT_PORT": "1", "PERCEPT_MAX_NUM_SEQS": "9"})
    assert environment["PERCEPT_MAX_NUM_SEQS"] == "7"
    assert environment["PERCEPT_LISTEN"] == llm.address
    assert environment["OMP_NUM_THREADS"] == environment["PERCEPT_THREADS"] == "3"
    assert environment["HOME"] == "/h"
    assert "PERCEPT_PORT" not in environment


def test_the_ready_line_names_a_request_that_exists_from_here(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"api_key": "secret"})
    monkeypatch.chdir(repository)
    assert "-d @examples/request.json" in ready_line(plan)
    monkeypatch.chdir(tmp_path)
    assert f"@{EXAMPLE_REQUEST}" in ready_line(plan)
    assert EXAMPLE_REQUEST.is_file()
    assert "secret" not in example_command(plan)
    assert "$PERCEPT_API_KEY" in example_command(plan)
    assert "\n" not in ready_line(plan)


def test_a_model_that_only_hears_is_asked_about_a_voice(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({})
    monkeypatch.chdir(repository)
    assert example_command(plan, {"audio"}).endswith("/v1/audio/transcriptions -F file=@examples/voice.wav")
    assert EXAMPLE_RECORDING.is_file()
    assert example_command(plan, {"audio", "image"}) == example_command(plan, {"image"})


def test_an_address_of_another_machine_is_not_called_a_port_in_use() -> None:
    # 192.0.2.0/24 is for documentation: no machine has it.
    with pytest.raises(SettingsError, match="this machine has no such address"):
        plan_of(host="192.0.2.1")
