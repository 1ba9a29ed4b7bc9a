"""`python -m percept.launcher.child SERVICE`: a service that does not outlive its launcher.

A launcher that is killed outright cannot stop what it started, so each service
asks the kernel for a SIGTERM at its parent's death.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM to this process when `parent` ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the launcher ended before this service began")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    from percept.cli import main

    main(sys.argv[2:])
