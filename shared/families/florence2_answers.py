"""Florence-2's tasks: the words that a task token stands for, and what an answer's tokens of places mean.

A prompt that is a task token, or begins with one that takes words, becomes a sentence. An
answer holds places as `<loc_0>` to `<loc_999>`, each a thousandth of the picture's width or
height; `read_answer` makes boxes, quadrilaterals and polygons in pixels of them.

Knows strings and numbers. Knows no model, and importing it imports neither torch nor
transformers. What is read out of an answer, odd ones included, is what transformers'
Florence2Processor reads out of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from shared.errors import InvalidRequestError

BINS = 1000
"""Places along a side."""

ALONE = MappingProxyType(
    {
        "<OCR>": "What is the text in the image?",
        "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
        "<CAPTION>": "What does the image describe?",
        "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
        "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
        "<OD>": "Locate the objects with category name in the image.",
        "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
        "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
    }
)
"""Tasks that are the whole prompt, and the sentence that the model was trained on."""

WITH_WORDS = MappingProxyType(
    {
        "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {}",
        "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {} in the image with mask",
        "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {}",
        "<OPEN_VOCABULARY_DETECTION>": "Locate {} in the image.",
        "<REGION_TO_CATEGORY>": "What is the region {}?",
        "<REGION_TO_DESCRIPTION>": "What does the region {} describe?",
        "<REGION_TO_OCR>": "What text is in the region {}?",
    }
)
"""Tasks that take words, or places, beside their token."""

_TEXT = frozenset(
    {
        "<OCR>",
        "<CAPTION>",
        "<DETAILED_CAPTION>",
        "<MORE_DETAILED_CAPTION>",
        "<REGION_TO_CATEGORY>",
        "<REGION_TO_DESCRIPTION>",
        "<REGION_TO_OCR>",
    }
)
_LOOKS_LIKE_TASK = re.compile(r"<[A-Z][A-Z_]*>")
_PLACE = r"<loc_(\d+)>"
_ENDS = re.compile(r"<s>|</s>|<pad>")
_NAME = re.compile(r"^\s*(.*?)(?=</?(?:od|box|bbox)>|<loc_)")
_SHAPE_NAME = re.compile(r"^\s*(.*?)(?=</?(?:od|box|bbox)>|<loc_|<poly>)")
_WORDS = re.compile(r"[^<]+")
_BOXES = re.compile(r"(?:<loc_\d+>){4,}")
_BOX = re.compile(_PLACE * 4)
_QUAD = re.compile(_PLACE * 8)
_SHAPE_MARK = r"(?:<loc_\d+>|<sep>|<poly>|</poly>)"
_SHAPES = re.compile(f"{_SHAPE_MARK}{{4,}}")
_OUTLINE = re.compile(r"((?:<loc_\d+>)+)(?:<sep>|$)")
_GROUP = re.compile(r"<poly>(.*?)</poly>")

Size = tuple[int, int]
"""Width and height of a picture in pixels."""


def task_in(prompt: str) -> str | None:
    """The task whose token is in a prompt, None for a prompt in the user's own words."""
    return next((task for task in (*ALONE, *WITH_WORDS) if task in prompt), None)


def written_out(prompt: str) -> str:
    """A prompt with its task's token written out as the sentence that it stands for.

    Raises:
        InvalidRequestError: words beside a task that takes none, or nothing but the token of a task
            that there is not.
    """
    task = task_in(prompt)
    if task is None:
        if _LOOKS_LIKE_TASK.fullmatch(prompt.strip()):
            raise _unknown(prompt.strip(), "prompt")
        return prompt
    if task in WITH_WORDS:
        return WITH_WORDS[task].format(prompt.replace(task, "").strip())
    if prompt.strip() != task:
        raise InvalidRequestError(f"{task} is a whole prompt: it takes no words beside it", param="prompt")
    return ALONE[task]


def read_answer(answer: str, task: str, size: Size, left_out: Collection[str] = ()) -> dict[str, Any]:
    """What an answer to a task says, in pixels of the picture.

    Args:
        answer: the text with its tokens of places.
        task: the task's token.
        size: of the picture that was asked about.
        left_out: names that `<CAPTION_TO_PHRASE_GROUNDING>` passes over (pronouns and the like),
            the checkpoint's `banned_grounding_tokens`.

    Returns:
        One entry, the task's: a string, or lists of shapes and of labels. Boxes are
        [x0, y0, x1, y1], quadrilaterals and polygons [x0, y0, x1, y1, ...].

    Raises:
        InvalidRequestError: there is no such task.
    """
    if task not in ALONE and task not in WITH_WORDS:
        raise _unknown(task, "task")
    return {task: _read(answer, task, size, left_out)}


def is_text(task: str) -> bool:
    """Whether answers to a task are words alone, without places in a picture."""
    return task in _TEXT


def _unknown(task: str, param: str) -> InvalidRequestError:
    known = ", ".join([*ALONE, *WITH_WORDS])
    return InvalidRequestError(f"there is no task {task[:64]!r}; there are {known}", param=param)


def _read(answer: str, task: str, size: Size, left_out: Collection[str]) -> Any:
    text = _ENDS.sub("", answer)
    match task:
        case "<OD>" | "<DENSE_REGION_CAPTION>":
            return _listed("bboxes", _boxes(_named(text, _BOXES), size))
        case "<REGION_PROPOSAL>":
            return _listed("bboxes", _boxes(_BOXES.findall(text), size))
        case "<CAPTION_TO_PHRASE_GROUNDING>":
            return _listed("bboxes", _boxes(_named(text, _BOXES), size, left_out))
        case "<OCR_WITH_REGION>":
            return _listed("quad_boxes", _quads(text, size))
        case "<REFERRING_EXPRESSION_SEGMENTATION>" | "<REGION_TO_SEGMENTATION>":
            return _listed("polygons", _shapes(_SHAPES.findall(text), size))
        case "<OPEN_VOCABULARY_DETECTION>":
            outlined = "<poly>" in answer
            boxes = [] if outlined else _boxes(_named(text, _BOXES), size)
            shapes = _shapes(_named(text, _SHAPES), size) if outlined else []
            return _listed("bboxes", boxes, "bboxes_labels") | _listed("polygons", shapes, "polygons_labels")
        case _:
            assert is_text(task), task
            return answer.replace("<s>", "").replace("</s>", "").strip()


def _listed(what: str, found: Sequence[tuple[str, Any]], labels: str = "labels") -> dict[str, list[Any]]:
    return {what: [shape for _, shape in found], labels: [name for name, _ in found]}


def _named(text: str, places: re.Pattern[str]) -> Iterator[str]:
    """Runs of places with the words in front of them: one look at each character, however long the text."""
    end = 0
    while words := _WORDS.search(text, end):
        run = places.match(text, words.end())
        if run:
            yield text[words.start() : run.end()]
        end = run.end() if run else words.end()


def _boxes(runs: Iterable[str], size: Size, left_out: Collection[str] = ()) -> list[tuple[str, list[int]]]:
    """Names and boxes; a name may have several."""
    found: list[tuple[str, list[int]]] = []
    for run in runs:
        name = _NAME.search(run)
        if name is None or name.group().strip() in left_out:
            continue
        label = _plain(name.group().strip())
        found += [(label, in_pixels(box, size)) for box in _BOX.findall(run)]
    return found


def _quads(text: str, size: Size) -> list[tuple[str, list[int]]]:
    """Words of one line and the quadrilateral behind them."""
    found: list[tuple[str, list[int]]] = []
    end = 0
    while quad := _QUAD.search(text, end + 1):
        place = quad.start()
        start = max(end, text.rfind("\n", end, place) + 1)
        if start < place:
            found.append((text[start:place].strip(), in_pixels(quad.groups(), size)))
        end = quad.end() if start < place else place
    return found


def _shapes(runs: Iterable[str], size: Size) -> list[tuple[str, list[list[int]]]]:
    """Names and polygons; each group between marks, or the whole run without any, is one shape."""
    found: list[tuple[str, list[list[int]]]] = []
    for run in runs:
        name = _SHAPE_NAME.search(re.sub(r"^<loc_\d+>", "", run, count=1))
        if name is None:
            continue
        groups = _GROUP.findall(run) if "<poly>" in run and "</poly>" in run else [run]
        for group in groups:
            outlines = [re.findall(_PLACE, outline) for outline in _OUTLINE.findall(group)]
            if outlines:
                shape = [in_pixels(places[: len(places) // 2 * 2], size) for places in outlines]
                found.append((name.group().strip(), shape))
    return found


def in_pixels(places: Sequence[str | int], size: Size) -> list[int]:
    """Places x, y, x, y, ... to pixels: the middle of each thousandth, rounded down."""
    sides = np.asarray([side / BINS for side in size], np.float32)
    middles = np.asarray([int(place) for place in places], np.float32) + np.float32(0.5)
    pixels = middles.reshape(-1, 2) * sides
    return [int(pixel) for pixel in pixels.reshape(-1)]


def _plain(name: str) -> str:
    return name.encode("ascii", "ignore").decode("ascii")
