"""The real thing for tests: `percept up` as a process, its services found and asked.

Knows the command line and the wire. Imports no service.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from protos.encoder.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from protos.llm.v1 import llm_service_pb2, llm_service_pb2_grpc

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 40.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings, proxies and foreign thread counts."""
    dropped = re.compile(r"(?i)^(percept_.*|.*_proxy|omp_num_threads)$")
    kept = {name: text for name, text in os.environ.items() if not dropped.match(name)}
    return {**kept, "HF_HUB_OFFLINE": "1", **extra}


@dataclass(frozen=True, slots=True)
class RunningService:
    """One service process of a stack.

    Attributes:
        name: "encoder", "llm" or "gateway".
        pid: its process.
        address: HOST:PORT that it listens on.
    """

    name: str
    pid: int
    address: str


class Stack:
    """A `percept` command that runs until it is stopped, and what it writes."""

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "percept", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment or clean_environment(),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._unread.put(self.lines[-1])
        self._unread.put(None)

    def wait_for(self, pattern: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """Waits for a line that matches, and returns it.

        Raises:
            AssertionError: the process ended, or the time was up; shows the last lines.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._unread.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {pattern!r} in {timeout_s:g} s:\n{self.tail()}") from None
            if line is None:
                raise AssertionError(f"ended before a line {pattern!r}:\n{self.tail()}")
            if re.search(pattern, line):
                return line

    def tail(self, count: int = 40) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.lines[-count:])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Signals the process and waits for its end. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(timeout=STOP_TIMEOUT_S)
        finally:
            self.kill()
        self._reader.join(timeout=5)
        return status

    def kill(self) -> None:
        """Ends the process and all below it at once."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        for process in below:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=10)


class UpStack(Stack):
    """`percept up` with a checkpoint, ready."""

    def __init__(self, model: Path | str, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["up", "--port", str(self.port), "--model", str(model), *flags]
        super().__init__(arguments, environment=environment)
        try:
            self.ready_line = self.wait_for(r"^Ready: ")
        except BaseException:
            self.kill()
            raise

    def services(self, name: str) -> list[RunningService]:
        """The running services of a kind, in the order of their start."""
        found = []
        for process in psutil.Process(self.process.pid).children():
            words = process.cmdline()
            if words[-1:] == [name] and "percept.launcher.child" in words:
                found.append(RunningService(name, process.pid, process.environ()["PERCEPT_LISTEN"]))
        return sorted(found, key=lambda service: service.pid)

    def encoder_status(self, index: int = 0) -> Any:
        """`GetStatus` of an encoder."""
        with grpc.insecure_channel(self.services("encoder")[index].address) as channel:
            stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
            return stub.GetStatus(encoder_service_pb2.GetStatusRequest(), timeout=5)

    def llm_status(self, index: int = 0) -> Any:
        """`GetStatus` of an LLM."""
        with grpc.insecure_channel(self.services("llm")[index].address) as channel:
            stub = llm_service_pb2_grpc.LlmServiceStub(channel)
            return stub.GetStatus(llm_service_pb2.GetStatusRequest(), timeout=5)

    def gateway_request_count(self) -> int:
        """Requests that the gateway is working on, by its own gauge."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        (count,) = re.findall(r"^percept:num_requests_in_gateway (\S+)$", text, flags=re.MULTILINE)
        return int(float(count))

    def is_idle(self) -> bool:
        """Says whether nothing is held for any request in any service."""
        llms = [self.llm_status(i) for i in range(len(self.services("llm")))]
        encoders = [self.encoder_status(i) for i in range(len(self.services("encoder")))]
        return (
            self.gateway_request_count() == 0
            and all(
                status.running_sequence_count == 0
                and status.waiting_sequence_count == 0
                and status.pending_request_count == 0
                and status.used_block_count == 0
                for status in llms
            )
            and all(status.pending_item_count == 0 for status in encoders)
        )

    def wait_until_idle(self, timeout_s: float) -> float:
        """Waits until nothing is held; returns the seconds that it took.

        Raises:
            AssertionError: something was still held after `timeout_s` seconds.
        """
        begin = time.monotonic()
        while not self.is_idle():
            waited = time.monotonic() - begin
            assert waited < timeout_s, f"after {waited:.1f} s: {self.llm_status()} {self.encoder_status()}"
            time.sleep(0.05)
        return time.monotonic() - begin
