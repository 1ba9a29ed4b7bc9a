"""Niceness: of the process and of its session, and never of anybody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (
    "import os\n"
    "from encoder_service.priority import yield_to_others\n"
    "yield_to_others({niceness})\n"
    "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
    "print(open('/proc/self/autogroup').read() if os.path.exists('/proc/self/autogroup') else '')\n"
)


def priorities(niceness: int, *, leads: bool) -> tuple[int, str]:
    """Niceness of a process and the line of its session's group, as it sees them itself."""
    program = [sys.executable, "-c", PROGRAM.format(niceness=niceness)]
    shown = subprocess.run(program, capture_output=True, text=True, check=True, start_new_session=leads)
    first, _, rest = shown.stdout.partition("\n")
    return int(first), rest.strip()


def test_a_service_yields_as_far_as_it_is_told() -> None:
    assert priorities(7, leads=True)[0] == 7
    assert priorities(0, leads=True)[0] == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel groups no sessions")
def test_its_session_yields_only_where_the_service_leads_it() -> None:
    before = Path("/proc/self/autogroup").read_text().strip()
    assert priorities(7, leads=True)[1].endswith("nice 7")
    assert priorities(7, leads=False)[1] == before
    assert Path("/proc/self/autogroup").read_text().strip() == before
