"""How much the encoder service yields to others on its machine.

Knows the kernel's two ways of sharing cores out. Does not know who else runs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def yield_to_others(niceness: int) -> None:
    """Lowers the priority of this thread and of all threads and processes that it starts from now on.

    Linux shares cores out among sessions first (autogroup) and looks at a process's
    own niceness only within its session, so the niceness of ours is set as well;
    but only where we lead it, since others in it have not asked for that.

    Args:
        niceness: 0, no change, to 19, whatever others leave.
    """
    if niceness == 0:
        return
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    if os.getsid(0) == os.getpid():
        # Not there without autogroups, and not ours to write in some containers.
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))
