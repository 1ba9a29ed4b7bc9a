"""Request bodies as bytes, built before they are sent.

Knows the fields of a chat completion. Does not know when a body is sent.
"""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import dataclass
from typing import Any

from percept.bench.pictures import draw_png
from percept.bench.prompts import PromptWriter, TextScale
from percept.bench.target import Target
from percept.bench.workload import Kind, Workload


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent.

    Attributes:
        index: its place in the workload.
        kind: what it is.
        body: JSON.
    """

    index: int
    kind: Kind
    body: bytes


class BodyBuilder:
    """Builds the requests of a workload for one target. Safe to use in a thread."""

    def __init__(self, target: Target, workload: Workload, scale: TextScale) -> None:
        self._workload = workload
        self._prompts = PromptWriter(workload, scale)
        self._options = body_options(target, workload.output_tokens)
        self._pool_url = functools.cache(self._draw)

    def build(self, index: int) -> Prepared:
        """Builds request `index`. Negative ones are of the warm-up: of the same shape, unlike all others."""
        kind = self._workload.kind(index)
        text = {"type": "text", "text": self._prompts.text(index)}
        pictures = self._pictures(index) if kind == "image" else []
        content = [text, *pictures] if self._workload.text_first else [*pictures, text]
        message = {"role": "user", "content": content if pictures else text["text"]}
        body = json.dumps({**self._options, "messages": [message]}, separators=(",", ":"))
        return Prepared(index, kind, body.encode())

    def _pictures(self, index: int) -> list[dict[str, Any]]:
        count, pool = self._workload.images, self._workload.repeated_images
        urls = (
            self._pool_url(f"pool {(index * count + place) % pool}")
            if pool
            else self._draw(f"{index} {place}")
            for place in range(count)
        )
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    def _draw(self, lot: str) -> str:
        shape = self._workload
        picture = draw_png(
            f"picture {shape.seed} {lot}", shape.image_width, shape.image_height, shape.image_cell
        )
        return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def body_options(target: Target, output_tokens: int) -> dict[str, Any]:
    """All fields of a body but the messages: streamed and greedy, and of a fixed length where asked for."""
    options: dict[str, Any] = {
        "model": target.model,
        "stream": True,
        "temperature": 0,
        "max_tokens": output_tokens,
    }
    if target.stream_usage:
        options["stream_options"] = {"include_usage": True}
    if target.ignore_eos:
        options |= {"ignore_eos": True, "min_tokens": output_tokens}
    return {**options, **target.extra_body}
