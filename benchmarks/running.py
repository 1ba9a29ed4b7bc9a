"""Services as processes for a measurement: started, asked until ready, stopped.

Knows the command line and the wire's status calls. Does not know what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.llm.v1 import llm_service_pb2, llm_service_pb2_grpc

BUNDLED = Path(__file__).parent.parent / "models" / "percept-tiny"
START_SECONDS = 300.0
_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT

_STAGE_LINE = re.compile(r'^percept:stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', re.MULTILINE)

Flags = Mapping[str, Any]


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextmanager
def process(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> Iterator[int]:
    """Runs `python ARGUMENTS`, in a session of its own as the launcher does; yields its process id."""
    kept = {name: text for name, text in os.environ.items() if not re.match("(?i)percept_|.*_proxy$", name)}
    running = subprocess.Popen(
        [sys.executable, *arguments], env={**kept, **(variables or {})}, start_new_session=True
    )
    try:
        yield running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(timeout=60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def service(
    name: str, address: str, flags: Flags, variables: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Runs one service on `address`; yields its process id.

    Args:
        flags: its settings by flag, without the dashes in front.
    """
    command = ["-m", "percept", name]
    for flag, value in {"listen": address, "log-level": "warning", **flags}.items():
        command.append(f"--{flag}={value}")
    with process(command, variables) as pid:
        yield pid


@dataclass(frozen=True, slots=True)
class Parts:
    """What is to run.

    Attributes:
        model: checkpoint folder.
        common: flags of both model services.
        encoder: further flags of the encoder service.
        llm: further flags of the LLM service.
        variables: further environment variables of all services.
    """

    model: Path
    common: Flags
    encoder: Flags
    llm: Flags
    variables: Mapping[str, str] | None = None


class Services:
    """An encoder, an LLM and a gateway. A context manager: inside it they are ready.

    Attributes:
        gateway, encoder, llm: HOST:PORT of each.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stack = ExitStack()
        self._pids: list[int] = []
        self.gateway, self.encoder, self.llm = free_addresses(3)

    def __enter__(self) -> Self:
        parts = self._parts
        common = {"model": parts.model, "served-model-name": "measured", "device": "cpu", **parts.common}
        try:
            self._start("encoder", self.encoder, {**common, **parts.encoder})
            self._start("llm", self.llm, {**common, **parts.llm})
            self._start("gateway", self.gateway, {"encoder": self.encoder, "llm": self.llm})
            wait_until_ready(self.gateway, self._pids)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def second_gateway(self, llm: str) -> str:
        """Starts another gateway that takes `llm` for the LLM service. Returns its address."""
        (address,) = free_addresses(1)
        self._start("gateway", address, {"encoder": self.encoder, "llm": llm})
        wait_until_ready(address, self._pids)
        return address

    def encoder_status(self) -> encoder_service_pb2.GetStatusResponse:
        """The encoder's counters."""
        with grpc.insecure_channel(self.encoder, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
            return stub.GetStatus(encoder_service_pb2.GetStatusRequest(), timeout=10)

    def llm_status(self) -> llm_service_pb2.GetStatusResponse:
        """The LLM service's counters."""
        with grpc.insecure_channel(self.llm, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = llm_service_pb2_grpc.LlmServiceStub(channel)
            return stub.GetStatus(llm_service_pb2.GetStatusRequest(), timeout=10)

    def stage_seconds(self, gateway: str | None = None) -> dict[str, tuple[float, float]]:
        """Seconds and count of each stage so far, as a gateway has measured them."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{gateway or self.gateway}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(
            r'^percept:stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', text, re.MULTILINE
        )
        sums = {stage: float(value) for kind, stage, value in found if kind == "sum"}
        counts = {stage: float(value) for kind, stage, value in found if kind == "count"}
        return {stage: (seconds, counts[stage]) for stage, seconds in sums.items()}

    def _start(self, name: str, address: str, flags: Flags) -> None:
        pid = self._stack.enter_context(service(name, address, flags, self._parts.variables))
        self._pids.append(pid)


def mean_between(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]], stage: str
) -> float:
    """Mean seconds of a stage between two looks at `stage_seconds`."""
    seconds, count = before.get(stage, (0.0, 0.0))
    return (after[stage][0] - seconds) / (after[stage][1] - count)


def wait_until_ready(gateway: str, pids: Sequence[int] = ()) -> None:
    """Asks the gateway for its health until all services behind it serve.

    Args:
        pids: child processes without which they never will.

    Raises:
        SystemExit: they did not in time, or a process has ended.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with opener.open(f"http://{gateway}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if any(os.waitid(os.P_PID, pid, _ENDED) for pid in pids):
                raise SystemExit("a service has ended; what it said stands above") from None
            time.sleep(0.1)
    raise SystemExit(f"the services were not ready within {START_SECONDS:.0f} s")
