"""What `percept up` is going to start: a plain value, decided before anything runs.

Knows how cores and ports are shared out and which setting goes to which service.
Starts nothing.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from percept.launcher.shared_paths import SharedPaths
from percept.services import ENCODER, GATEWAY, LLM, ServiceEntry, load_service_settings
from percept.up_settings import UpSettings
from shared.settings import ConfigFile, ServiceSettings, SettingsError

LOOPBACK = "127.0.0.1"
_NOTHING_SHARED = SharedPaths()
_INNER_PORTS = range(20_000, 32_000)
"""Below the range that outgoing connections take their ports from, so that a
service which restarts finds its port free."""


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One process to start.

    Attributes:
        name: its name in logs, for example "encoder-2".
        entry: which service it is.
        address: HOST:PORT that it will listen on.
        settings: its settings, complete.
    """

    name: str
    entry: ServiceEntry
    address: str
    settings: ServiceSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `percept up` starts, the gateway last.

    Attributes:
        services: the processes.
        model_name: name that requests may use.
        url: base URL that clients on this machine use, without "/v1".
        needs_key: clients must send an API key.
    """

    services: tuple[PlannedService, ...]
    model_name: str
    url: str
    needs_key: bool


def split_cores(core_count: int, services: int) -> int:
    """Threads of each of several encoders, or of several LLMs: their even part of the cores, one at least.

    Encoders and LLMs together get twice the cores: they divide them anew at
    every step, by who computes at the time.
    """
    return max(1, core_count // services)


def make_plan(
    up: UpSettings, flags: Mapping[str, Any], config: ConfigFile, shared: SharedPaths = _NOTHING_SHARED
) -> Plan:
    """Decides every service's settings.

    Args:
        up: the settings of `percept up`.
        flags: all flags that were given, those of the services included.
        config: the --config file.
        shared: what the services share.

    Raises:
        SettingsError: a service refuses its settings, or the port is taken.
    """
    _check_free(up.host, up.port)
    ports = _free_ports(up.encoders + up.llms)
    encoder_addresses = [f"{LOOPBACK}:{port}" for port in ports[: up.encoders]]
    llm_addresses = [f"{LOOPBACK}:{port}" for port in ports[up.encoders :]]
    cores = len(os.sched_getaffinity(0))
    encoder_threads = up.encoder_threads or split_cores(cores, up.encoders)
    llm_threads = up.llm_threads or split_cores(cores, up.llms)
    planner = _Planner({**flags, "model": up.model}, config)
    common = {"shared_cores": shared.cores, "shared_rows": shared.rows}
    for index, address in enumerate(encoder_addresses):
        name = _name("encoder", index, up.encoders)
        planner.add(ENCODER, name, address, threads=encoder_threads, llm=llm_addresses, **common)
    for index, address in enumerate(llm_addresses):
        name = _name("llm", index, up.llms)
        planner.add(LLM, name, address, threads=llm_threads, **common)
    planner.add(GATEWAY, "gateway", _join(up.host, up.port), encoder=encoder_addresses, llm=llm_addresses)
    services = planner.services()
    return Plan(
        services=services,
        model_name=_model_name(up, services[-1].settings),
        url=f"http://{_join(_reachable(up.host), up.port)}",
        needs_key=bool(getattr(services[-1].settings, "api_key", ())),
    )


class _Planner:
    """Collects the services, and the mistakes of all of them."""

    def __init__(self, flags: Mapping[str, Any], config: ConfigFile) -> None:
        self._flags = flags
        self._config = config
        self._services: list[PlannedService] = []
        self._mistakes: list[str] = []

    def add(self, entry: ServiceEntry, name: str, address: str, **decided: Any) -> None:
        settings_class = entry.settings_class()
        given = {field: self._flags[field] for field in self._flags if field in settings_class.model_fields}
        flags = {**given, "listen": address, **decided}
        try:
            settings = load_service_settings(entry, flags, self._config)
        except SettingsError as error:
            self._mistakes += [line for line in error.mistakes if line not in self._mistakes]
            return
        self._services.append(PlannedService(name, entry, address, settings))

    def services(self) -> tuple[PlannedService, ...]:
        if self._mistakes:
            raise SettingsError(self._mistakes)
        return tuple(self._services)


def _model_name(up: UpSettings, gateway: ServiceSettings) -> str:
    names: tuple[str, ...] = getattr(gateway, "served_model_name", ())
    return names[0] if names else up.model


def _name(kind: str, index: int, count: int) -> str:
    return kind if count == 1 else f"{kind}-{index + 1}"


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str) -> str:
    """The host that a client on this machine uses for what the gateway listens on."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def _check_free(host: str, port: int) -> None:
    """Refuses a port that is taken before anything is loaded.

    Raises:
        SettingsError: says so, and what to do.
    """
    if not is_free(host, port):
        raise SettingsError(
            [f"--port {port}: the port is in use on {host}; stop what uses it, or choose another --port"]
        )


def is_free(host: str, port: int) -> bool:
    """Says whether a server could listen there now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise SettingsError([f"--host {host}: {error.strerror}"]) from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise SettingsError([_why_not_bound(host, port, error)]) from error
    return True


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine has no such address; 0.0.0.0 listens on all that it has"
    if error.errno == errno.EACCES:
        return f"--port {port}: ports below 1024 need special rights; choose a higher one"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(_INNER_PORTS, len(_INNER_PORTS)):
        if is_free(LOOPBACK, port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise SettingsError([f"no {count} free ports from {_INNER_PORTS.start} to {_INNER_PORTS.stop}"])
