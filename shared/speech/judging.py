"""Whether what was written of a piece is to be trusted, as Whisper's authors judge it. Pure: no I/O.

The rules and their numbers are those of openai/whisper's `transcribe.py`: an answer that repeats itself
or that the model is unsure of is tried again with more chance, and one that the model is unsure of where
nobody seems to speak is no speech. Knows measures. Does not know who tries again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import InvalidRequestError
from shared.speech.transcript import compression_ratio

if TYPE_CHECKING:
    from shared.speech.transcribing import PieceAnswer

MOST_COMPRESSION = 2.4
LEAST_LOGPROB = -1.0
MOST_SILENCE = 0.6

DEFAULT_INCREMENT = 0.2
"""Of the temperature, from one try to the next."""

INCREMENT = "temperature_increment_on_fallback"
"""Its name in requests, which is that of Whisper's own command line."""

_LEAST_INCREMENT = 0.1
_HIGHEST = 1.0


def temperatures(first: float, increment: float) -> tuple[float, ...]:
    """Temperatures to try one after the other: `first` alone, unless it is 0 and there is an increment.

    Raises:
        InvalidRequestError: the increment is neither 0 nor from 0.1 to 1.
    """
    if not (increment == 0 or _LEAST_INCREMENT <= increment <= _HIGHEST):
        raise InvalidRequestError(
            f"'{INCREMENT}' is 0 or from {_LEAST_INCREMENT} to {_HIGHEST}", param=INCREMENT
        )
    if first > 0 or increment == 0:
        return (first,)
    count = int(_HIGHEST / increment + 1e-6)
    return (0.0, *(round(step * increment, 6) for step in range(1, count + 1)))


def is_silence(answer: PieceAnswer) -> bool:
    """Whether nobody speaks in a piece: that is probable, and the model is unsure of what it wrote."""
    measures = answer.measures
    return (
        measures is not None
        and measures.no_speech_probability > MOST_SILENCE
        and measures.mean_logprob < LEAST_LOGPROB
    )


def is_doubtful(answer: PieceAnswer) -> bool:
    """Whether an answer is to be tried again; never where the model does not tell how sure it is."""
    measures = answer.measures
    if measures is None or is_silence(answer):
        return False
    text = answer.text.strip()
    return measures.mean_logprob < LEAST_LOGPROB or compression_ratio(text) > MOST_COMPRESSION
