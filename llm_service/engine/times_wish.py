"""The wish to be told when a sequence's tokens are heard, a part of the front's messages.

Knows places in a sequence. Does not know how times are found.
"""

from __future__ import annotations

import msgspec


class TokenTimesWish(msgspec.Struct, frozen=True):
    """Tell when a sequence's tokens are heard.

    Attributes:
        first: the first token of the answer proper, counted from the sequence's beginning:
            what stands before has no time.
        row_count: the recording's rows that hold sound; what follows is silence that fills it up.
    """

    first: int
    row_count: int
