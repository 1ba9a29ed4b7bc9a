"""Names of tensors in layouts other than the one that transformers saves.

Knows the layouts that several families share. Does not know which family has which.
"""

from __future__ import annotations


def newer_name(name: str) -> str:
    """The name that newer transformers give a tensor of the hub's layout."""
    if name.startswith(
        (
            "visual.",
            "vision_tower.",
            "vision_model.",
            "audio_tower.",
            "multi_modal_projector.",
            "image_newline",
        )
    ):
        return f"model.{name}"
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    name = name.removeprefix("language_model.").removeprefix("model.")
    return name if name.startswith("lm_head.") else f"model.language_model.{name}"


def oddly_saved_name(name: str) -> str:
    """The name under which transformers 5.17 saves a language model's tensor of the hub's layout."""
    return name.replace("language_model.model.", "language_model.model.model.")


def with_wrapped_tower(name: str) -> str:
    """The name where the tower's own class stands inside a wrapper."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")
