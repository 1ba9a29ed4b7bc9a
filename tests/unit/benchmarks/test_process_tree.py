"""Nothing of a server outlives its block: no worker, no orphan, none in a session of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.peer import PeerError, free_port, wait_until_ready
from benchmarks.peers.process_tree import ProcessTree, inherited_environment, is_alive, pinned

CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
DETACH = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
)
# A worker in a session of its own, and an orphan: its parent ends at once.
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
subprocess.run([sys.executable, "-c", {DETACH!r}, {CHILD!r}])
print("up", flush=True)
time.sleep(600)
"""


def wait_for_line(tree: ProcessTree, line: str) -> None:
    deadline = time.monotonic() + 30
    while line not in tree.tail():
        assert time.monotonic() < deadline, tree.tail()
        time.sleep(0.05)


def test_workers_that_ignore_the_request_and_orphans_are_killed(tmp_path: Path) -> None:
    with ProcessTree([sys.executable, "-c", PARENT], tmp_path / "log", grace_s=2) as tree:
        wait_for_line(tree, "up")
        members = tree.members()
        assert len(members) == 3
    # Whoever adopts an orphan may leave it a zombie for a while: dead, and not yet buried.
    assert not [process for process in members if is_alive(process)]


def test_an_error_inside_the_block_ends_the_tree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD]
    with (
        pytest.raises(KeyboardInterrupt),
        ProcessTree(command, tmp_path / "log", grace_s=0.2) as tree,
    ):
        pid = tree.pid
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)


def test_a_tree_of_others_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with ProcessTree(command, tmp_path / "one") as one:
        with ProcessTree(command, tmp_path / "other"):
            pass
        assert one.exit_code is None


def test_a_process_runs_on_the_cores_it_was_given_and_the_caller_keeps_its_own(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    ask = "import os; print('cores', sorted(os.sched_getaffinity(0)), flush=True)"
    with ProcessTree([sys.executable, "-c", ask], tmp_path / "log", cores=[core]) as tree:
        wait_for_line(tree, f"cores [{core}]")
    assert os.sched_getaffinity(0) == before


def test_no_cores_named_means_all_of_the_caller_s() -> None:
    before = os.sched_getaffinity(0)
    with pinned([]):
        assert os.sched_getaffinity(0) == before


def test_settings_of_the_shell_do_not_reach_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERCEPT_MODEL", "OMP_NUM_THREADS", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("BENCHMARK_KEPT", "1")
    found = inherited_environment()
    assert "BENCHMARK_KEPT" in found
    assert not {"PERCEPT_MODEL", "OMP_NUM_THREADS", "https_proxy", "HTTP_PROXY"} & found.keys()


def test_a_server_that_ends_before_it_is_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/health"
    with (
        ProcessTree([sys.executable, "-c", "raise SystemExit('no weights')"], tmp_path / "log") as tree,
        pytest.raises(PeerError, match=r"ended with code 1 before it was ready:\nno weights"),
    ):
        wait_until_ready("server", url, tree, 30)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/health"
    with (
        ProcessTree([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log") as tree,
        pytest.raises(PeerError, match="was not ready after"),
    ):
        wait_until_ready("server", url, tree, 0.5)


def test_waiting_ends_with_the_first_answer(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with ProcessTree(command, tmp_path / "log") as tree:
        assert wait_until_ready("server", f"http://127.0.0.1:{port}/", tree, 30) > 0
