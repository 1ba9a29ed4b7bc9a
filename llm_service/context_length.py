"""The context's length, and what does not fit into it.

Knows token counts alone. The errors keep the words that clients look for.
"""

from __future__ import annotations

from shared.errors import ContextLengthError, InvalidRequestError

COUNTED_CONTEXTS = 4
"""Context lengths of a text that is still counted for a caller who only wants to know."""


def check_length(token_count: int, max_model_len: int, *, at_least: bool = False) -> None:
    """Refuses a prompt that leaves no room for an answer.

    Args:
        at_least: the prompt has even more tokens, which were not counted.

    Raises:
        ContextLengthError: the prompt is too long.
    """
    if token_count >= max_model_len:
        count = f"at least {token_count}" if at_least else str(token_count)
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt has "
            f"{count}. Please shorten the prompt or use fewer or smaller media.",
            param="prompt",
        )


def answer_room(token_count: int, wanted: int | None, max_model_len: int, filled_in: int = 0) -> int:
    """Most tokens of an answer: as many as wanted, or all that the context leaves.

    Args:
        filled_in: tokens among those wanted that begin the answer and that no caller counts.

    Raises:
        ContextLengthError: prompt and answer do not fit.
    """
    check_length(token_count, max_model_len)
    if wanted is not None and token_count + wanted > max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt has "
            f"{token_count + filled_in}, so {wanted - filled_in} more tokens do not fit. Please ask for "
            "fewer.",
            param="stopping.max_token_count",
        )
    return max_model_len - token_count if wanted is None else wanted


def check_countable(token_count: int, max_model_len: int) -> None:
    """Refuses to turn a text of many times the context's length into tokens, or tokens into text.

    Args:
        token_count: tokens that there are, or that there are at least.

    Raises:
        InvalidRequestError: there are too many.
    """
    limit = COUNTED_CONTEXTS * max_model_len
    if token_count > limit:
        raise InvalidRequestError(
            f"at most {limit} tokens are counted, {COUNTED_CONTEXTS} times the model's maximum context "
            f"length; there are at least {token_count}",
            param="prompt",
        )
