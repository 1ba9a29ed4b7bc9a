"""`python -m benchmarks.gpu`: tests and measurements of the engine on one GPU, within ten minutes.

    python -m benchmarks.gpu --out results.json
    python -m benchmarks.gpu --smoke          (tiny sizes on a CPU: shows that it runs, measures nothing)

Weights are random and made on the device. Each part runs by itself: one that
fails is reported and loses no other. What a machine lacks of Percept's own
dependencies is taken from wheels in the folder `.gpu-wheels`, if there is one
(`make gpu-wheels` fills it), as such machines may reach no network.
"""

from __future__ import annotations

import sys

from benchmarks.gpu.wheels import use_wheels

use_wheels()

from benchmarks.gpu.program import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
