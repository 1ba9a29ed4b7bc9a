"""Pictures in a Pixtral prompt: lines of rows, a break token behind each, an end token behind the last.

Knows tokens and how many there are. Knows no weights and imports neither torch nor
transformers. The rules are those of `PixtralProcessor` and of `get_resize_output_image_size`
in transformers (processing_pixtral.py, image_processing_pil_pixtral.py), release 5.23.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import InvalidRequestError
from shared.families.base import Checkpoint, ExpandedPrompt, Grid, MediaInfo, Modality, Span
from shared.families.mrope import check_placeholder_count

TOKENS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
"""What the processor's configuration calls its tokens, and what they are where it does not say."""


def lines_and_columns(picture: tuple[int, int], longest_edge: int, cell: int) -> tuple[int, int]:
    """Lines of rows of a picture, and rows in each; 0 for a picture that is too thin.

    The picture is shrunk until its longer side is at most `longest_edge`, then grown
    to whole cells. A picture of the size that comes out gives the same again.

    Args:
        picture: height and width in pixels.
        longest_edge: in pixels.
        cell: side of the pixels of one row.
    """
    height, width = picture
    ratio = max(height / longest_edge, width / longest_edge)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return -(-height // cell), -(-width // cell)


@dataclass(frozen=True, slots=True)
class PixtralLayout:
    """Grows `[IMG]` to a picture's lines; one rotary axis.

    Rows of the encoder stand at the image tokens alone: a picture has a span for each
    line, with an ordinary token between. Its grid counts lines and columns of rows.

    Attributes:
        text: the placeholder.
        image_id: its token id.
        break_id: token id behind a line.
        end_id: token id behind the last line.
    """

    text: str
    image_id: int
    break_id: int
    end_id: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, image_id: int) -> PixtralLayout:
        """Finds the tokens of a checkpoint.

        Raises:
            InvalidRequestError: its tokenizer has no such token.
        """
        named = TOKENS | {name: text for name, text in _processor(checkpoint).items() if name in TOKENS}
        break_id, end_id = (
            _token_id(checkpoint, named[name]) for name in ("image_break_token", "image_end_token")
        )
        return cls(named["image_token"], image_id, break_id, end_id)

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """See `PromptLayout`."""
        return {"image": self.image_id}

    def placeholder_text(self, modality: Modality) -> str:
        """See `PromptLayout`."""
        assert modality == "image", modality
        return self.text

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """See `PromptLayout`. Positions are int64 (1, tokens).

        Raises:
            InvalidRequestError: also where rows and grid of an item differ.
        """
        check_placeholder_count(token_ids, self.image_id, len(media))
        expanded: list[int] = []
        spans: list[Span] = []
        items = enumerate(media)
        for token in token_ids:
            if token == self.image_id:
                self._add_picture(expanded, spans, *next(items))
            else:
                expanded.append(token)
        positions = np.arange(len(expanded), dtype=np.int64)[np.newaxis]
        return ExpandedPrompt(expanded, spans, positions, next_position=len(expanded))

    def _add_picture(self, expanded: list[int], spans: list[Span], item: int, info: MediaInfo) -> None:
        grid = _grid(item, info)
        for line in range(grid.height):
            spans.append(Span(item, len(expanded), grid.width, first_row=line * grid.width))
            expanded += [self.image_id] * grid.width
            expanded.append(self.break_id)
        expanded[-1] = self.end_id


def _grid(item: int, info: MediaInfo) -> Grid:
    """The one grid of an item.

    Raises:
        InvalidRequestError: it has another number, or other rows than the grid implies.
    """
    implied = sum(grid.time * grid.height * grid.width for grid in info.grids)
    if len(info.grids) != 1 or info.grids[0].time != 1 or implied != info.row_count:
        raise InvalidRequestError(
            f"item {item} has {info.row_count} rows; its grids imply {implied}", param=f"media[{item}]"
        )
    return info.grids[0]


def _processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """processor_config.json, or {} where the checkpoint has none."""
    return _read_json(checkpoint, "processor_config.json") or {}


def _token_id(checkpoint: Checkpoint, text: str) -> int:
    """The id of a special token."""
    tokenizer = _read_json(checkpoint, "tokenizer.json") or {}
    for token in tokenizer.get("added_tokens", ()):
        if token.get("content") == text:
            return int(token["id"])
    raise InvalidRequestError(f"{checkpoint.folder}: the tokenizer has no special token {text}")


def _read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """A file of the checkpoint, None where it is not there.

    Raises:
        InvalidRequestError: it is no JSON object.
    """
    file = checkpoint.folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InvalidRequestError(f"{file} is not valid: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{file} is not valid: it holds no object")
    return content
