"""`python -m benchmarks.memory`: each service holds its own half of the model's weights.

Writes a checkpoint of some 650 million random parameters, starts the real
services with it, has them answer one question about a picture, and compares
their memory with what the same services take with a model of no size.

Memory is the proportional set size of a service's processes: pages that they
share count once.
"""

from __future__ import annotations

import argparse
import base64
import io
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from PIL import Image

from benchmarks.random_checkpoint import HalfSizes, write_random_checkpoint

MIB = 1024 * 1024
START_SECONDS = 300.0
ANSWER_SECONDS = 300.0
SLACK_BYTES = 128 * MIB
"""What a service may take beyond its half: work space, and the allocator's rounding."""

BUNDLED = Path(__file__).parent.parent / "models" / "percept-tiny"


class Sizes(NamedTuple):
    """Memory of both model services, in bytes."""

    encoder: int
    language: int


def main() -> int:
    """Prints the comparison; 0 where both services hold their half alone."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="percept-memory-", dir=arguments.scratch) as scratch:
        large = Path(scratch) / "large"
        print("writing a random checkpoint ...", flush=True)
        weights = write_random_checkpoint(large)
        print("measuring the services without weights to speak of ...", flush=True)
        empty = _measure_services(arguments.like)
        print("measuring the services with the large checkpoint ...", flush=True)
        full = _measure_services(large)
        print("measuring the whole model in one transformers process ...", flush=True)
        whole = _measure_whole(large)
    return _report(weights, empty, full, whole)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--like", type=Path, default=BUNDLED, help="small checkpoint to measure against")
    parser.add_argument("--scratch", type=Path, help="folder for 1.3 GB of temporary files")
    arguments = parser.parse_args()
    if not (arguments.like / "config.json").is_file():
        parser.error(f"{arguments.like} holds no checkpoint; name one with --like")
    return arguments


def _report(weights: HalfSizes, empty: Sizes, full: Sizes, whole: int) -> int:
    halves = f"encoder {_mib(weights.encoder)}, language {_mib(weights.language)}"
    print(f"\nweights: {_mib(weights.whole)} ({halves})")
    print(f"whole model in one process: {_mib(whole)}")
    failed = 0
    for name, before, after, half in (
        ("encoder", empty.encoder, full.encoder, weights.encoder),
        ("LLM", empty.language, full.language, weights.language),
    ):
        grown = after - before
        # Both bounds: a half that was never touched would prove nothing.
        holds = half * 0.8 <= grown <= half + SLACK_BYTES
        failed += not holds
        verdict = "holds its half alone" if holds else "DOES NOT HOLD JUST ITS HALF"
        print(
            f"{name} service: {_mib(after)}, {_mib(before)} with the small model: +{_mib(grown)}; {verdict}"
        )
    return 1 if failed else 0


def _mib(byte_count: int) -> str:
    return f"{byte_count / MIB:,.0f} MiB"


def _measure_services(model: Path) -> Sizes:
    """Starts all three services, asks one question, measures, stops."""
    encoder, llm, gateway = (f"127.0.0.1:{port}" for port in _free_ports(3))
    common = {"model": model, "served-model-name": "measured", "device": "cpu", "dtype": "bfloat16"}
    with ExitStack() as stack:
        encoder_pid = stack.enter_context(
            _service("encoder", encoder, common | {"workers": 1, "cache-gib": 0})
        )
        llm_pid = stack.enter_context(
            _service("llm", llm, common | {"kv-cache-gib": 1 / 16, "max-model-len": 512})
        )
        stack.enter_context(_service("gateway", gateway, {"encoder": encoder, "llm": llm}))
        _ask(gateway)
        return Sizes(_memory(encoder_pid), _memory(llm_pid))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _service(name: str, address: str, flags: dict[str, Any]) -> Iterator[int]:
    """Runs one service on `address`; yields its process id."""
    command = [sys.executable, "-m", "percept", name]
    for flag, value in {"listen": address, "log-level": "warning", **flags}.items():
        command += [f"--{flag}", str(value)]
    process = subprocess.Popen(command)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(gateway: str) -> None:
    """Sends one question about a picture, once the services are ready."""
    picture = io.BytesIO()
    Image.new("RGB", (96, 96), (200, 30, 30)).save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    body = {"model": "measured", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    # trust_env off: a proxy named in the environment has no business on the loopback.
    with httpx.Client(base_url=f"http://{gateway}", timeout=ANSWER_SECONDS, trust_env=False) as client:
        answer = _first_answer(client, body)
    if answer.status_code != httpx.codes.OK:
        raise SystemExit(f"the services answered {answer.status_code}: {answer.text}")


def _first_answer(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    """Asks until all services are up: before that the gateway is not there, or answers 503."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.ConnectError):
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
        time.sleep(0.5)
    raise SystemExit(f"the services were not ready within {START_SECONDS:.0f} s")


def _memory(pid: int) -> int:
    """Proportional set size of a process and all that it started, in bytes."""
    process = psutil.Process(pid)
    return sum(int(each.memory_full_info().pss) for each in (process, *process.children(recursive=True)))


def _measure_whole(model: Path) -> int:
    """Memory of plain transformers with the whole model, in bytes."""
    program = (
        "import sys, psutil, torch\n"
        "from transformers import AutoModelForImageTextToText\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "total = sum(float(parameter.sum()) for parameter in model.parameters())\n"
        "print(psutil.Process().memory_full_info().pss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True, timeout=600
    )
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main())
