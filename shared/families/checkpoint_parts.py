"""Finds the repositories that a checkpoint's config.json names for parts of the model.

Knows folders and hub ids. Does not know what a part is, and reads nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shared.checkpoint import HUB_ID, find_checkpoint
from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint


def find_part(checkpoint: Checkpoint, name: str, field: str) -> Path:
    """The folder of a part.

    A hub id is looked for by its last word in the folders that were named for parts, inside the
    checkpoint's folder and beside it, then on the hub, whose files may be here already.

    Args:
        name: a folder, from the checkpoint's or absolute, or a hub id.
        field: where config.json names it, for errors.

    Raises:
        InvalidRequestError: it is nowhere; the text says where it was looked for.
    """
    folder, last = checkpoint.folder, Path(name).name
    named = [place for given in checkpoint.part_folders for place in _named(given, last)]
    places = (*named, folder / last, folder.parent / last)
    found = next((place for place in (folder / name, *places) if (place / "config.json").is_file()), None)
    if found is not None:
        return found
    reason = "it is no Hugging Face id"
    if HUB_ID.fullmatch(name):
        try:
            return find_checkpoint(name).folder
        except InvalidRequestError as error:
            reason = error.message
    looked = " nor ".join(str(place) for place in dict.fromkeys(places))
    raise InvalidRequestError(
        f"{folder / 'config.json'} says that {field} is {name!r}, and there is neither {looked} "
        f"(--model-parts names other folders); {reason}"
    )


def _named(given: Path, last: str) -> Iterator[Path]:
    """Where a repository may be in a folder that was named for parts: a folder inside it, or itself."""
    yield given / last
    if given.name == last:
        yield given
