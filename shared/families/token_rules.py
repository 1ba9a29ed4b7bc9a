"""Rules about which tokens may come next, as values: what a family says of a prompt's answer.

Knows shapes. Knows no model and no logits, and importing it imports neither torch nor
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TimestampRule:
    """Answers in which tokens for times stand around text, as Whisper's do.

    Times come in pairs, do not fall, begin the answer, and are chosen wherever all of them
    together are likelier than any other token.

    Attributes:
        first_id: the token of 0 seconds; all behind it are times, the last of the vocabulary.
        end_id: tokens below it are text.
        most_initial: the answer begins at most so many times after the first; None: at any.
    """

    first_id: int
    end_id: int
    most_initial: int | None = None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What may be chosen in an answer.

    Attributes:
        leading: of each of the answer's first tokens, those that it is one of; the likeliest
            is taken, at any temperature. No other rule holds for them.
        suppressed: never chosen behind those.
        first_suppressed: not chosen directly behind those.
        timestamps: see `TimestampRule`; None where times are no matter of this answer.
        run_length: no run of so many tokens comes twice; 0: any may.
        begun: so many of the prompt's last tokens count as the answer's for `run_length`.
        last_id: the token that an answer as long as it may be ends with; None: any.
        silence_id: the token that says that nobody speaks, which is never chosen but may be
            asked about; None where there is none.
    """

    leading: tuple[tuple[int, ...], ...] = ()
    suppressed: tuple[int, ...] = ()
    first_suppressed: tuple[int, ...] = ()
    timestamps: TimestampRule | None = None
    run_length: int = 0
    begun: int = 0
    last_id: int | None = None
    silence_id: int | None = None


NO_RULES = TokenRules()


@dataclass(frozen=True, slots=True)
class SpeechTask:
    """What is to be done with the recording of a prompt.

    Attributes:
        language: that is spoken, its name or code; "" where the model is to hear it itself.
        translates: write English, whatever is spoken.
        previous_text: what was said before, or how words are spelt; may be "".
        timestamps: write times around the text.
        from_start: the prompt ends with what begins the model's turn, whatever is known: the
            rest comes first in the answer.
    """

    language: str = ""
    translates: bool = False
    previous_text: str = ""
    timestamps: bool = False
    from_start: bool = False
