"""A gateway that is there but answers one request by closing its connection."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.stack import clean_environment

BROKEN = b"break off"


class _Gateway(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if BROKEN in body:
            self.close_connection = True
            return
        answer = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def percept(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "percept", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=clean_environment()
    )


def test_one_recording_does_not_end_the_others(tmp_path: Path, gateway: str) -> None:
    for name, content in (("a.wav", BROKEN), ("b.wav", b"b"), ("c.wav", b"c")):
        (tmp_path / name).write_bytes(content)
    sources = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    done = percept("transcribe", *sources, "--out", tmp_path / "out", "--url", gateway, "--concurrency", 1)
    assert done.returncode == 1
    assert f"{tmp_path / 'a.wav'}: the connection was broken off" in done.stderr
    assert done.stderr.splitlines()[-1] == "2 transcribed, 0 were there, 1 failed"


def test_one_recording_alone_says_so(tmp_path: Path, gateway: str) -> None:
    (tmp_path / "a.wav").write_bytes(BROKEN)
    for form in ("text", "json"):
        done = percept("transcribe", tmp_path / "a.wav", "--url", gateway, "--format", form)
        assert done.returncode == 1
        assert done.stderr.startswith(f"percept transcribe: {tmp_path / 'a.wav'}: the connection was")


def test_one_request_does_not_end_the_others(tmp_path: Path, gateway: str) -> None:
    lines = [
        {"custom_id": name, "url": "/v1/chat/completions", "body": {"messages": content}}
        for name, content in (("a", BROKEN.decode()), ("b", "b"))
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.jsonl"
    done = percept("generate", "--input", tmp_path / "in.jsonl", "--output", output, "--url", gateway)
    assert done.returncode == 1
    answers = {answer["custom_id"]: answer for answer in map(json.loads, output.read_text().splitlines())}
    assert answers["a"]["error"]["code"] == "broken_off"
    assert answers["b"]["response"]["status_code"] == 200
