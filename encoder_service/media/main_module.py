"""The main module, hidden from processes that start.

Knows that multiprocessing has every new process import the program's main module
again, and what it finds that module by. Workers need nothing of it: under the
`percept` command it is the whole command line.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_hiding = threading.Lock()


@contextmanager
def hidden_main() -> Iterator[None]:
    """Leaves the main module without a name and a file inside the block.

    One block at a time, so that none puts back what another hid. What starts
    processes elsewhere in the program is not disturbed but for the same effect.
    """
    names = sys.modules["__main__"].__dict__
    with _hiding:
        kept: dict[str, Any] = {name: names[name] for name in ("__spec__", "__file__") if name in names}
        names["__spec__"] = None
        # Taken away, not None: inspect, which torch calls when another thread
        # imports it, stumbles over a module whose file is None.
        names.pop("__file__", None)
        try:
            yield
        finally:
            names.update(kept)
