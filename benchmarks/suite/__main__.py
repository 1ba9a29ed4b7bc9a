"""`python -m benchmarks.suite`."""

from benchmarks.suite.command import main

raise SystemExit(main())
