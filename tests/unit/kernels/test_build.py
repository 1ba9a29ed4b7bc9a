"""Compilers that are missing, fail, hang or lie; caches that are broken, shared or full."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from shared.kernels import build as building
from shared.kernels import cache as caching
from shared.kernels import start
from shared.kernels.build import BuildError, build
from shared.kernels.cache import Cache, open_cache
from shared.kernels.library import Library
from shared.kernels.operation import AttentionPlan, Operation

CPU = torch.device("cpu")
Compiler = Callable[[str], Path]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing remembered of earlier outcomes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "_OUTCOME", building._Outcome())
    return tmp_path / "cache" / "percept"


@pytest.fixture(scope="session")
def ready() -> Path:
    """The real library, in the real cache."""
    return build()


@pytest.fixture
def compiler(ready: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Makes CXX a script.

    `$TRUE_CXX` in it is a real compiler, `$READY` what that makes of the
    kernels, `$OUT` the library that is asked for.
    """
    true_cxx = building._find_compiler()

    def make(body: str) -> Path:
        script = tmp_path / "compiler"
        lines = [
            "#!/bin/sh",
            f"TRUE_CXX={true_cxx} READY={ready}",
            'if [ "$1" = --version ]; then echo scripted; exit; fi',
            f'echo compiling >> "{tmp_path}/calls"',
            "for OUT; do :; done",
            body,
        ]
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make


def calls(tmp_path: Path) -> int:
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def starts_without_kernels(caplog: pytest.LogCaptureFixture) -> str:
    """A service's start goes on with torch; returns what it says."""
    with caplog.at_level(logging.INFO):
        assert start.start_team(CPU, torch.float32, "auto", 1) is None
    return caplog.text


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler \(no-such-compiler\) on PATH; install one"):
        build()
    assert "torch computes, which is slower: no C++ compiler" in starts_without_kernels(caplog)


def test_nothing_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)"):
        build()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "echo the disk is made of cheese >&2; exit 3",
            r"compiling the kernels failed \(3\): .*made of cheese",
        ),
        ("true", "trying the kernels failed"),
        ('echo no library > "$OUT"', "trying the kernels failed"),
        ("kill -SEGV $$", r"compiling the kernels failed \(-11\)"),
    ],
    ids=["fails", "makes nothing", "makes something else", "crashes"],
)
def test_a_compiler_that_fails(
    compiler: Compiler, folder: Path, caplog: pytest.LogCaptureFixture, body: str, reason: str
) -> None:
    compiler(body)
    with pytest.raises(BuildError, match=reason):
        build()
    assert "torch computes, which is slower" in starts_without_kernels(caplog)
    assert [path.name for path in folder.iterdir()] == ["lock"]


@pytest.mark.parametrize("processor", ["flags : avx512_bf16 amx_bf16 amx_tile", "flags : avx512_bf16"])
def test_kernels_that_fail_with_tiles_are_made_without(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str
) -> None:
    """Only where the processor has some; elsewhere that would change nothing."""
    monkeypatch.setattr(building, "_processor", lambda: processor)
    compiler('case "$*" in *NO_TILES*) exec "$TRUE_CXX" "$@";; *) echo empty > "$OUT";; esac')
    if "amx_tile" in processor:
        assert Library(build()).make_team(1).size == 1
        assert calls(tmp_path) == 2
    else:
        with pytest.raises(BuildError, match="trying the kernels failed"):
            build()
        assert calls(tmp_path) == 1


@pytest.mark.parametrize("broken", ["--version", "compiling"])
def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(building, "VERSION_TIMEOUT_S", 1.0)
    monkeypatch.setattr(building, "COMPILE_TIMEOUT_S", 1.0)
    hang = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    script = compiler(hang)
    if broken == "--version":
        script.write_text(f"#!/bin/sh\n{hang}\n")
    with pytest.raises(BuildError, match=rf"{broken}.* took longer than 1 s"):
        build()
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler"
    script.write_bytes(b"\x7fELFnonsense")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(BuildError, match="Exec format error"):
        build()


def fake(folder: Path, *, run: str | None, size_change: int = 0) -> Path:
    """Source of a library with all functions of the true one, which do nothing.

    Args:
        run: body of the function that runs programs; None to leave it out.
        size_change: of the structs that it says it takes.
    """
    bodies = {
        "percept_operation_size": f"return {ctypes.sizeof(Operation) + size_change};",
        "percept_attention_size": f"return {ctypes.sizeof(AttentionPlan) + size_change};",
        "percept_make_team": "return 1;",
        "percept_run": f"{run} return 0;",
    }
    lines = ["#include <cstdint>"]
    for name in sorted(set(re.findall(r"percept_\w+(?=\()", building.ENTRY.read_text()))):
        if name != "percept_run" or run is not None:
            head = 'extern "C" __attribute__((visibility("default"))) int64_t'
            lines.append(f"{head} {name}(...) {{ {bodies.get(name, 'return 0;')} }}")
    source = folder / "fake.cpp"
    source.write_text("\n".join(lines) + "\n")
    return source


LIARS: dict[str, tuple[str | None, str]] = {
    "computes nothing": ("", "a linear layer is off by"),
    "crashes": ("*(volatile int *)8 = 1;", r"failed \(-11\)"),
    "never ends": ('for (;;) asm volatile("");', "took longer than 2 s"),
    "lacks a function": (None, "has no percept_run"),
}


@pytest.mark.parametrize("name", LIARS)
def test_a_library_that_is_wrong_is_never_used(
    compiler: Compiler, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(building, "CHECK_TIMEOUT_S", 2.0)
    run, reason = LIARS[name]
    compiler(f'exec $TRUE_CXX -shared -fPIC {fake(tmp_path, run=run)} -o "$OUT"')
    with pytest.raises(BuildError, match=f"trying the kernels .*{reason}"):
        build()
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_library_of_another_version_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    source = fake(tmp_path, run="", size_change=8)
    compiler(f'exec $TRUE_CXX -shared -fPIC {source} -o "$OUT"')
    with pytest.raises(BuildError, match=r"operation has \d+ bytes there and \d+ here"):
        build()


GOOD = 'cp "$READY" "$OUT"'


def test_a_library_is_compiled_once(compiler: Compiler, tmp_path: Path, folder: Path) -> None:
    compiler(GOOD)
    first = build()
    assert build() == first
    assert calls(tmp_path) == 1
    assert first.parent == folder
    Library(first)


@pytest.mark.parametrize("size", [0, 10, 5000, -1])
def test_a_damaged_library_is_compiled_again(compiler: Compiler, tmp_path: Path, size: int) -> None:
    """Loading half a library would crash the service."""
    compiler(GOOD)
    path = build()
    content = path.read_bytes()
    path.write_bytes(content[:size])
    assert build() == path
    assert calls(tmp_path) == 2
    assert path.read_bytes() == content
    Library(path).make_team(2)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path), tmp_path / "made"
    made.write_bytes(bytes(1000))
    kept = cache.keep(made)
    assert cache.find("made") == kept
    content = bytearray(kept.read_bytes())
    content[500] ^= 4
    kept.write_bytes(content)
    assert cache.find("made") is None
    assert cache.find("other") is None


def test_two_processes_compile_once(compiler: Compiler, tmp_path: Path) -> None:
    compiler(GOOD)
    code = "from shared.kernels.build import built_library; print(built_library())"
    command = [sys.executable, "-c", code]

    def run(_: int) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout

    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(run, range(3)))
    assert len(paths) == 1
    assert calls(tmp_path) == 1


def test_a_lock_that_nobody_gives_back_is_waited_for_so_long(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    begin = time.monotonic()
    with cache.locked(60), cache.locked(0.3):
        assert time.monotonic() - begin >= 0.3
    with cache.locked(60):
        pass


def test_a_failure_is_not_repeated(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service asks early in the background and once more when it needs the kernels."""
    compiler("exit 1")
    # With tiles, what fails is tried once without.
    monkeypatch.setattr(building, "_processor", lambda: "flags: none of tiles")
    for _ in range(3):
        with pytest.raises(BuildError, match="compiling the kernels failed"):
            building.built_library()
    assert calls(tmp_path) == 1


def test_the_key_knows_sources_flags_compiler_and_processor(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may move to another machine with its container."""
    script = compiler(GOOD)

    def key(*flags: str) -> str:
        return building._key(str(script), flags)

    plain = key()
    assert key() == plain
    assert key("-O1") != plain
    with monkeypatch.context() as changed:
        changed.setattr(building, "_processor", lambda: "flags: fewer")
        assert key() != plain
    sources = tmp_path / "source"
    sources.mkdir()
    with monkeypatch.context() as changed:
        changed.setattr(building, "SOURCES", sources)
        (sources / "a.hpp").write_text("one")
        first = key()
        (sources / "a.hpp").write_text("two")
        assert len({plain, first, key()}) == 3
    script.write_text(script.read_text().replace("scripted", "scripted 2"))
    assert key() != plain


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not tell")
def test_the_processors_abilities_are_known() -> None:
    assert any(word in building._processor() for word in ("flags", "Features"))


@pytest.fixture
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache lies below a file, so that not even root can make it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(caching.tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.mark.usefixtures("no_folder")
def test_a_cache_that_cannot_be_written_is_replaced(tmp_path: Path, compiler: Compiler) -> None:
    compiler(GOOD)
    path = build()
    assert path.parent == tmp_path / "temporary" / f"percept-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert build() == path
    assert calls(tmp_path) == 1


@pytest.mark.usefixtures("no_folder")
@pytest.mark.parametrize("trap", ["link", "file", "open to all"])
def test_code_is_not_loaded_from_a_folder_of_somebody_else(
    tmp_path: Path, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "temporary" / f"percept-{os.getuid()}"
    if trap == "file":
        folder.write_text("")
    elif trap == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(BuildError, match="cannot be kept"):
        build()
    assert "torch computes" in starts_without_kernels(caplog)


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(caching.tempfile, "tempdir", str(tmp_path))
    assert open_cache().folder == tmp_path / f"percept-{os.getuid()}"


def test_what_nobody_uses_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = time.time() - caching.UNUSED_S - 60
    (tmp_path / "building-left").mkdir()
    for name in ("kernels-old.so", "kernels-used.so", "kernels-new.so", "other-old.so"):
        (tmp_path / "made").write_bytes(b"content")
        os.rename(cache.keep(tmp_path / "made"), tmp_path / name)
    for name in ("building-left", "kernels-old.so", "kernels-used.so", "other-old.so"):
        os.utime(tmp_path / name, (old, old))
    assert cache.find("kernels-used.so") is not None
    (tmp_path / "made").write_bytes(b"content")
    cache.keep(tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {
        "made",
        "kernels-used.so",
        "kernels-new.so",
        "other-old.so",
    }


def test_no_kernels_are_asked_for(compiler: Compiler, tmp_path: Path) -> None:
    """--kernels torch, another device, an element type without kernels: nothing is compiled."""
    compiler(GOOD)
    assert start.start_team(CPU, torch.float32, "torch", 1) is None
    assert start.start_team(torch.device("cuda"), torch.float32, "auto", 1) is None
    assert start.start_team(CPU, torch.float16, "auto", 1) is None
    assert calls(tmp_path) == 0


def test_a_team_has_the_threads_that_were_asked_for(compiler: Compiler) -> None:
    compiler(GOOD)
    for threads in (1, 3):
        team = start.start_team(CPU, torch.bfloat16, "auto", threads)
        assert team is not None
        assert team.size == threads


def test_no_threads_left(compiler: Compiler) -> None:
    """The system's limit, in a process of its own: torch serves."""
    compiler(GOOD)
    code = (
        "import resource, torch, logging; logging.basicConfig()\n"
        "from shared.kernels import start\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "assert start.start_team(torch.device('cpu'), torch.float32, 'auto', 2) is not None\n"
        "assert start.start_team(torch.device('cpu'), torch.float32, 'auto', 20000) is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the system gives no 20000 threads" in done.stderr
