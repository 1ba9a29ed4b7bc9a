"""Faults of building a model from a checkpoint's files, told in one line.

Libraries meet wrong numbers in configuration files with whatever exception they
happen to run into. Knows that it is the files that are to blame then, mostly; does
not know any library or family.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import InvalidRequestError, PerceptError

logger = logging.getLogger(__name__)

_MAX_REASON_LENGTH = 300


@contextmanager
def faults_of(folder: Path | str, what: str, files: str = "config.json") -> Iterator[None]:
    """Names the checkpoint in `folder` where building `what` fails inside the block.

    Typed errors pass, as they say more; so does a library that is not installed.

    Raises:
        InvalidRequestError: anything else was raised.
    """
    try:
        yield
    except (PerceptError, ModuleNotFoundError):
        raise
    except Exception as fault:
        logger.debug("building the %s failed", what, exc_info=fault)
        reason = " ".join(str(fault).split())[:_MAX_REASON_LENGTH]
        raise InvalidRequestError(
            f"{folder}: the {what} cannot be built from {files} and what lies beside it:"
            f" {type(fault).__name__}: {reason} (--log-level debug shows where)"
        ) from fault
