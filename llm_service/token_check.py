"""Whether a checkpoint's tokenizer has the tokens that its model is asked with, found out at the start.

What is missing would show in every answer, as a refusal or, worse, as words about nothing.
Knows layouts and the tokenizer. Does not know any model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llm_service.text_tokenizer import TextTokenizer
from shared.errors import InvalidRequestError
from shared.families.base import Modality, PromptLayout
from shared.families.names_tokens import NamesTokens


def check_tokens(
    folder: Path, tokenizer: TextTokenizer, layout: PromptLayout, modalities: Iterable[Modality]
) -> None:
    """Checks a tokenizer against a layout.

    Args:
        folder: the checkpoint's, for errors.
        modalities: what the model takes.

    Raises:
        InvalidRequestError: the tokenizer is empty, or lacks a token.
    """
    if not tokenizer.backend.get_vocab_size(with_added_tokens=False):
        raise InvalidRequestError(f"{folder} has no vocabulary: is tokenizer.json there?")
    ids = layout.placeholder_ids()
    for modality in ids.keys() & set(modalities):
        text = layout.placeholder_text(modality)
        if ids[modality] not in tokenizer.backend.encode(text, add_special_tokens=False).ids:
            raise _not_there(folder, text, ids[modality], f"stands for {modality}")
    if isinstance(layout, NamesTokens):
        for text, token_id in layout.named_tokens().items():
            if tokenizer.backend.token_to_id(text) != token_id:
                raise _not_there(folder, text, token_id, "is written into prompts")


def _not_there(folder: Path, text: str, token_id: int, use: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{folder}: in the tokenizer (tokenizer.json) {text!r} does not give the token {token_id}, which"
        f" {use} as config.json and generation_config.json say; the files are of different models, or damaged"
    )
