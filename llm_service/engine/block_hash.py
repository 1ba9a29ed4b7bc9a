"""Content hashes of blocks: what makes two blocks of KV slots equal.

A block's keys and values follow from all tokens up to its end and from the
media among them. Placeholder ids say nothing about the picture, so the keys of
the items that overlap the block, and where their rows fall in it, are hashed
with the tokens; the parent's hash stands for all that lies before, and before the
first block for the variant of the weights and for the way of computing that follows
from a sequence's length.

Positions are left out, as they follow from tokens and media. Knows nothing of
which blocks exist.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice, takewhile

from llm_service.engine.messages import SpanMessage
from llm_service.engine.sequence import Sequence


def hashes_of(sequence: Sequence, block_count: int, block_size: int) -> list[bytes]:
    """Hashes of the sequence's leading `block_count` blocks, all of them full of known tokens.

    Hashes once computed are kept in `sequence.block_hashes`.
    """
    hashes = sequence.block_hashes
    assert block_count * block_size <= len(sequence.token_ids), "a block that is not full has no hash"
    while len(hashes) < block_count:
        start = len(hashes) * block_size
        parent = hashes[-1] if hashes else _beginning(sequence)
        hashes.append(_hash_block(parent, sequence, start, start + block_size))
    return hashes[:block_count]


def _beginning(sequence: Sequence) -> bytes:
    # No variant's name holds a zero byte.
    way = b"\0switched" if sequence.switched else b""
    return hashlib.sha256(sequence.variant.encode() + way).digest()


def _hash_block(parent: bytes, sequence: Sequence, start: int, end: int) -> bytes:
    digest = hashlib.sha256(parent)
    digest.update(array("i", sequence.token_ids[start:end]).tobytes())
    for span in _overlapping(sequence.spans, start, end):
        first = max(start, span.start)
        count = min(end, span.start + span.length) - first
        # Where in the block, which rows of the item, and whose.
        place = array("q", (first - start, span.first_row + first - span.start, count, len(span.key)))
        digest.update(place.tobytes())
        digest.update(span.key.encode())
    return digest.digest()


def _overlapping(spans: list[SpanMessage], start: int, end: int) -> Iterator[SpanMessage]:
    # They are in order and do not overlap, and a prompt may have thousands, a line of a picture each.
    first = bisect_right(spans, start, key=_end)
    return takewhile(lambda span: span.start < end, islice(spans, first, None))


def _end(span: SpanMessage) -> int:
    return span.start + span.length
