"""What a model of speech has written, as segments with times, and in the formats of subtitles. Pure: no I/O.

Knows how tokens of times stand around text ("<|0.00|> Hello.<|1.24|>"). Does not know who
wrote it nor who asked.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_TIME = re.compile(rb"<\|(\d{1,4}\.\d\d)\|>")
_MARK = re.compile(rb"<\|[a-z]+\|>")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Attributes:
        raw: its bytes; marks and times are written out.
        logprob: natural logarithm of its probability.
        start_s, end_s: from when to when it is heard, in seconds from its piece's beginning; 0
            where nobody asked.
    """

    token_id: int
    raw: bytes
    logprob: float
    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def time(self) -> float | None:
        """The seconds that it stands for; None for any other token."""
        found = _TIME.fullmatch(self.raw)
        return None if found is None else float(found[1])

    @property
    def is_mark(self) -> bool:
        """Whether it is no text: the language, the task, an end."""
        return _MARK.fullmatch(self.raw) is not None

    @property
    def is_text(self) -> bool:
        """Whether it is neither a time nor a mark."""
        return self.time is None and not self.is_mark


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text with its times.

    Attributes:
        start_s, end_s: in seconds from the recording's beginning.
        text: as it was written, a space in front included.
        tokens: its tokens, those of times included.
        seek_s: where the piece begins that it was heard in.
        temperature: that its tokens were chosen with.
        no_speech_probability: that nobody speaks in that piece; 0 where the model does not tell.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[Token, ...]
    seek_s: float
    temperature: float = 0.0
    no_speech_probability: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """Of its tokens."""
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))

    @property
    def compression_ratio(self) -> float:
        """See `compression_ratio`."""
        return compression_ratio(self.text)


def compression_ratio(text: str) -> float:
    """Bytes of a text for each byte that zlib makes of them: high where it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def text_of(tokens: Iterable[Token]) -> str:
    """The text of tokens, without times and marks."""
    return b"".join(token.raw for token in tokens if token.is_text).decode("utf-8", "replace")


def segments_of(tokens: Sequence[Token], start_s: float, end_s: float) -> list[Segment]:
    """Cuts an answer at its times, as transformers' tokenizer does for `output_offsets`.

    A segment begins where two times meet. What is left behind the last time, of an answer that
    broke off, lasts until the piece's end. Segments without text are left out.

    Args:
        tokens: of one piece's answer.
        start_s, end_s: where the piece is in the recording; no segment leaves it.
    """
    length = end_s - start_s
    segments = []
    for run in _runs(tokens):
        times = [token.time for token in run]
        begin = times[0] if times[0] is not None else 0.0
        end = times[-1] if len(run) > 1 and times[-1] is not None else length
        text = text_of(run)
        if text.strip():
            begin = min(begin, length)
            times_in_whole = (start_s + begin, start_s + min(max(begin, end), length))
            segments.append(Segment(*times_in_whole, text, tuple(run), start_s))
    return segments


def _runs(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens between one segment's first time and its last, without what stands in front."""
    run: list[Token] = []
    for token in tokens:
        if token.is_mark:
            continue
        if token.time is not None and run and run[-1].time is not None:
            yield run
            run = []
        run.append(token)
    if run:
        yield run


def to_srt(segments: Iterable[Segment]) -> str:
    """SubRip's format."""
    blocks = (
        f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{_line(segment)}\n"
        for number, segment in enumerate(segments, 1)
    )
    return "\n".join(blocks)


def to_vtt(segments: Iterable[Segment]) -> str:
    """WebVTT (W3C)."""
    blocks = (
        f"{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{_line(segment)}\n"
        for segment in segments
    )
    return "WEBVTT\n\n" + "\n".join(blocks)


def _line(segment: Segment) -> str:
    """An empty line would end a block, and an arrow would begin one."""
    return " ".join(segment.text.split()).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
