"""Finds the repositories that a checkpoint's config.json names for parts of the model.

Knows folders and hub ids. Does not know what a part is, and reads nothing of it.
"""

from __future__ import annotations

from pathlib import Path

from shared.checkpoint import HUB_ID, find_checkpoint
from shared.errors import InvalidRequestError


def find_part(folder: Path, name: str, field: str) -> Path:
    """The folder of a part.

    A hub id is looked for by its last word inside the checkpoint's folder and beside it,
    then on the hub, whose files may be here already.

    Args:
        folder: the checkpoint's.
        name: a folder, from the checkpoint's or absolute, or a hub id.
        field: where config.json names it, for errors.

    Raises:
        InvalidRequestError: it is nowhere; the text says where it was looked for.
    """
    places = (folder / name, folder / Path(name).name, folder.parent / Path(name).name)
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is not None:
        return found
    reason = "it is no Hugging Face id"
    if HUB_ID.fullmatch(name):
        try:
            return find_checkpoint(name).folder
        except InvalidRequestError as error:
            reason = error.message
    looked = " nor ".join(str(place) for place in dict.fromkeys(places[1:]))
    raise InvalidRequestError(
        f"{folder / 'config.json'} says that {field} is {name!r}, and there is neither {looked}; {reason}"
    )
