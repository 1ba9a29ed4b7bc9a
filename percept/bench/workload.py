"""What is asked: lengths, pictures, how many of which, what repeats.

Knows the numbers. Does not know how a prompt is worded, how a picture is drawn,
nor when anything is sent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from percept.bench.checks import require

Kind = Literal["text", "image"]

MIX_WINDOW = 20
"""Requests over which a mix has its share exactly (rounded): where in them is drawn by lot."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one shape, drawn from one seed: the same workload is the same requests, byte for byte.

    Attributes:
        prompt_tokens: tokens of a prompt's text, chat template included, pictures not. A target: what
            was counted is in the records.
        output_tokens: tokens of each answer.
        images: pictures in a request of the kind "image". 0 makes every request text.
        image_share: part of the requests that carry pictures, 0 to 1.
        image_width: pixels.
        image_height: pixels.
        image_cell: side of the squares of one colour that a picture is made of, in pixels. 1 is noise,
            which PNG cannot compress; larger cells make smaller files.
        repeated_images: 0 draws a fresh picture each time; k takes them in turn from a pool of k.
        repeated_prefix_tokens: tokens at the head of the text that all prompts share. As large as
            `prompt_tokens`, all prompts are the same.
        text_first: puts the text before the pictures. Fresh text then keeps a repeated picture out of
            every prefix cache, though not out of a cache of embeddings.
        seed: of everything that is drawn.

    Raises:
        InvalidRequestError: a number makes no sense.
    """

    prompt_tokens: int = 128
    output_tokens: int = 64
    images: int = 0
    image_share: float = 1.0
    image_width: int = 448
    image_height: int = 448
    image_cell: int = 4
    repeated_images: int = 0
    repeated_prefix_tokens: int = 0
    text_first: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "image_width", "image_height", "image_cell"):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("images", "repeated_images", "repeated_prefix_tokens"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        require(0 <= self.image_share <= 1, "image_share", "must be between 0 and 1")
        longest = self.prompt_tokens
        require(self.repeated_prefix_tokens <= longest, "repeated_prefix_tokens", "is longer than the prompt")

    def kind(self, index: int) -> Kind:
        """What request `index` is: every window of the mix has its share, in an order drawn by lot."""
        if not self.images or index < 0:
            return "image" if self.images else "text"
        window, place = divmod(index, MIX_WINDOW)
        # Shares add up over windows: 1 % is one request in every fifth window, not none in each.
        so_far = [round((window + step) * MIX_WINDOW * self.image_share) for step in (0, 1)]
        lots = list(range(MIX_WINDOW))
        random.Random(f"mix {self.seed} {window}").shuffle(lots)
        return "image" if lots[place] < so_far[1] - so_far[0] else "text"
