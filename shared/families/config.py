"""A checkpoint's config.json as transformers understands it, defaults filled in.

Knows how to ask transformers. Does not know any family's fields.
"""

from __future__ import annotations

from typing import Any

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint


def model_config(checkpoint: Checkpoint) -> Any:
    """Returns a fresh transformers configuration.

    Fresh, because the caller will choose attention functions in it.

    Raises:
        InvalidRequestError: config.json does not describe such a model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    # Wrong fields come as ValueError, TypeError, KeyError or the library's own validation errors.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequestError(f"{checkpoint.folder / 'config.json'} is not valid: {reason}") from error
