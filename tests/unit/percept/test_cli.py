"""The command line as a process: help, mistakes, versions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from encoder_service.settings import EncoderSettings
from llm_service.settings import LlmSettings
from percept.commands.chat import build_body
from percept.options import fields_of
from shared.families import supported_model_types
from shared.settings import ServiceSettings
from tests.stack import clean_environment, free_port


def percept(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "percept", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(**variables),
        timeout=60,
        check=False,
    )


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    probe = (
        "import sys, percept.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'grpc', 'fastapi', 'pydantic'} & set(sys.modules)\n"
        "print('heavy:', heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert "heavy: set()" in done.stdout
    for command in ("up", "encoder", "llm", "gateway", "chat", "health", "version"):
        assert f"\n  {command} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2], "a summary that was cut"


def test_the_version_is_asked_for_in_two_ways() -> None:
    for word in ("--version", "version"):
        done = percept(word)
        assert done.returncode == 0
        assert done.stdout == f"{version('percept')}\n"


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        begin = time.perf_counter()
        assert percept("--help").returncode == 0
        return time.perf_counter() - begin

    # The best of three: what else runs on the machine is not ours to measure.
    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", ["up", "encoder", "llm", "gateway"])
def test_every_option_is_explained_without_torch(command: str) -> None:
    probe = (
        "import sys, percept.cli as cli\n"
        f"try: cli.main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert "heavy: set()" in done.stdout
    assert "--config FILE" in done.stdout
    assert "--log-level" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["up", "--prot", "3"], {}, "No such option"),
        (["up", "--port", "many"], {}, "--port: input should be a valid integer"),
        (["up", "--limit-mm-per-prompt", "image"], {}, "--limit-mm-per-prompt: write it as"),
        (["gateway"], {}, "--llm is required: give the flag or set PERCEPT_LLM"),
        (["gateway", "--llm", "a:1"], {"PERCEPT_LMM": "x"}, "PERCEPT_LMM: no setting has this name"),
        (["encoder"], {"PERCEPT_MODEL": "m", "PERCEPT_DEVICE": "tpu"}, "PERCEPT_DEVICE: input should be"),
        (["llm", "--config", "/no/such/file.toml"], {}, "/no/such/file.toml"),
    ],
)
def test_mistakes_end_with_status_2_and_their_name(
    arguments: list[str], variables: dict[str, str], message: str
) -> None:
    done = percept(*arguments, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('model = "m"\nmax-num-seq = 3\n')
    done = percept("llm", "--config", str(path))
    assert done.returncode == 2
    assert '"max_num_seq" in the --config file' in done.stderr
    assert "max_num_seqs" in done.stderr


def test_models_lists_every_family_without_torch() -> None:
    probe = (
        "import sys, percept.cli as cli\n"
        "try: cli.main(['models'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', {'torch', 'transformers', 'numpy', 'grpc'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert "heavy: set()" in done.stdout
    for model_type in supported_model_types():
        assert f"\n{model_type}\n" in "\n" + done.stdout
    families = json.loads(percept("models", "--json").stdout)
    assert [family["model_type"] for family in families] == list(supported_model_types())
    assert all(family["checkpoints"] and family["embedding_fields"] for family in families)


def test_chat_without_a_gateway_says_so() -> None:
    done = percept("chat", "--url", f"http://127.0.0.1:{free_port()}", "hello")
    assert done.returncode == 1
    assert "no gateway at" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--image", "--video", "--audio"])
def test_chat_with_a_missing_file_says_so(tmp_path: Path, flag: str) -> None:
    done = percept("chat", flag, str(tmp_path / "none.mp4"), "hello")
    assert done.returncode == 1
    assert f"{flag} {tmp_path / 'none.mp4'}: " in done.stderr


@pytest.mark.parametrize("command", [("chat", "What?"), ("transcribe", "a.wav")])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--url", "http://127.0.0.1:99999"), "a port is a number from 1 to 65535"),
        (("--url", "http://127.0.0.1:0"), "a port is a number from 1 to 65535"),
        (("--url", "::::"), "Invalid port"),
        (("--url", "ftp://127.0.0.1"), "write http://HOST:PORT"),
        (("--url", ""), "write http://HOST:PORT"),
        (("--api-key", "schl\u00fcssel"), "--api-key: a key holds printable ASCII characters alone"),
        (("--api-key", "a\nb"), "--api-key: a key holds printable ASCII characters alone"),
        (("--model", "\udcff"), "--model: the bytes are no text in UTF-8"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(
    command: tuple[str, ...], given: tuple[str, ...], told: str
) -> None:
    done = percept(*command, *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"percept {command[0]}: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_question_of_bytes_is_refused() -> None:
    done = percept("chat", "\udcff")
    assert (done.returncode, done.stderr) == (2, "percept chat: QUESTION: the bytes are no text in UTF-8\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_an_answer_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"sound")
    command = ["transcribe", "--format", "json", str(recording), "--url"]
    with answering(b"{}") as address, open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "percept", *command, address],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "percept transcribe: standard output: No space left on device\n"


@contextmanager
def refusing(param: str | None) -> Iterator[str]:
    """A server that refuses every request as a gateway does. Gives HOST:PORT."""
    error = {"message": "no such thing", "type": "invalid_request_error", "param": param, "code": None}
    with answering(json.dumps({"error": error}).encode(), status=400) as address:
        yield address


@contextmanager
def answering(answer: bytes, status: int = 200) -> Iterator[str]:
    """A server that answers every request alike. Gives HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("messages[1].content[0].image_url", "--image {a}: 400: no such thing"),
        ("messages[1].content[1].video_url.url", "--video {b}: 400: no such thing"),
        ("messages[1].content[2].audio_url", "--audio {a}: 400: no such thing"),
        ("messages[1].content[3].text", "400: no such thing"),
        ("max_completion_tokens", "400: no such thing"),
        (None, "400: no such thing"),
    ],
)
def test_a_refusal_of_a_file_names_it(tmp_path: Path, param: str | None, told: str) -> None:
    a, b = tmp_path / "a.bin", tmp_path / "b.bin"
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    with refusing(param) as address:
        flags = ["--audio", str(a), "--video", str(b), "--image", str(a)]
        done = percept("chat", *flags, "--system", "Be brief.", "--url", address, "What?")
    assert done.returncode == 1
    assert done.stderr == f"percept chat: {told.format(a=a, b=b)}\n"


def test_chat_sends_files_before_the_question(tmp_path: Path) -> None:
    film, song = tmp_path / "film.mp4", tmp_path / "song.mp3"
    film.write_bytes(b"film")
    song.write_bytes(b"song")
    files = {"image": ["https://example.org/a.png"], "video": [str(film)], "audio": [str(song)]}
    body = build_body("What?", files, None, {})
    assert body["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,ZmlsbQ=="}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/mpeg;base64,c29uZw=="}},
        {"type": "text", "text": "What?"},
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_health_of_nothing_is_status_1(address: str) -> None:
    done = percept("health", address.format(port=free_port()))
    assert done.returncode == 1
    assert "is not ready" in done.stderr


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert percept("version").stdout.strip() == version("percept")


def test_a_setting_of_several_services_is_described_for_each() -> None:
    fields = fields_of(ServiceSettings, EncoderSettings, LlmSettings)
    text = fields["device"].description or ""
    for settings_class in (EncoderSettings, LlmSettings):
        assert (settings_class.model_fields["device"].description or "-") in text
    assert fields["log_level"].description == ServiceSettings.model_fields["log_level"].description
