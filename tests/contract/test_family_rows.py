"""Every family of the catalogue has a row in the tests, and every row a family."""

from __future__ import annotations

import subprocess
import sys

from shared.families import supported_model_types
from tests.families import all_cases


def test_catalogue_and_rows_name_the_same_families() -> None:
    assert sorted(all_cases()) == sorted(supported_model_types())


def test_rows_are_found_without_torch() -> None:
    """Collecting tests stays fast: builders import what is heavy when they run."""
    program = (
        "import sys; from tests.families import all_variants; all_variants();"
        " assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
