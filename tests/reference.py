"""The reference: plain transformers on the whole checkpoint, on the CPU and in float32 by default.

Expands placeholders and finds pixels without Percept's code, so that both can
be wrong only apart.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


class ReferenceModel:
    """A whole checkpoint in transformers, answering greedily."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        import torch
        import transformers
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        processor_class = getattr(transformers, settings["image_processor_type"].removesuffix("Fast") + "Pil")
        self.processor: Any = processor_class.from_pretrained(folder)
        self.config: Any = self.model.config
        self._takes_kinds = "mm_token_type_ids" in inspect.signature(self.model.forward).parameters

    def generate(
        self,
        token_ids: Sequence[int],
        pictures: Sequence[Image.Image] = (),
        max_token_count: int = 16,
        **settings: Any,
    ) -> list[int]:
        """Returns the new tokens of a greedy answer.

        Args:
            token_ids: a prompt with one placeholder id for each picture.
            pictures: RGB pictures in order.
            settings: further arguments of transformers' `generate`.
        """
        import torch

        inputs = self.inputs(token_ids, pictures)
        with torch.no_grad():
            output = self.model.generate(
                **inputs, max_new_tokens=max_token_count, do_sample=False, **settings
            )
        return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]

    def chat(self, messages: list[dict[str, Any]], **template_arguments: Any) -> list[int]:
        """Renders messages with the checkpoint's template and tokenises them as transformers does."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **template_arguments
        )
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def inputs(self, token_ids: Sequence[int], pictures: Sequence[Image.Image] = ()) -> dict[str, Any]:
        """Returns the model's own inputs, placeholders expanded."""
        import torch

        features = dict(self.processor(images=list(pictures), return_tensors="pt")) if pictures else {}
        counts = iter(self.row_counts(features))
        expanded: list[int] = []
        for token in token_ids:
            expanded += [token] * (next(counts) if token == self.config.image_token_id else 1)
        ids = torch.tensor([expanded])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | features
        if "image_grid_thw" in features and self._takes_kinds:
            inputs["mm_token_type_ids"] = (ids == self.config.image_token_id).int()
        return inputs

    def row_counts(self, features: dict[str, Any]) -> list[int]:
        """Rows of each picture of a processor's output."""
        if "image_grid_thw" in features:
            merged = self.config.vision_config.spatial_merge_size**2
            return [int(grid.prod()) // merged for grid in features["image_grid_thw"]]
        if "pixel_values" not in features:
            return []
        return [len(rows) for rows in self.image_features(features)]

    def image_features(self, features: dict[str, Any]) -> list[Any]:
        """Rows of each picture, (rows, hidden), from transformers' own `get_image_features`."""
        import torch

        dtype = self.model.dtype
        features = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in features.items()
        }
        with torch.no_grad():
            output = self.model.get_image_features(**features)
        pooled = output.pooler_output if hasattr(output, "pooler_output") else output
        return list(pooled)
