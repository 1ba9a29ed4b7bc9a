"""Tiny checkpoints of the families with their reference, each loaded once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import MODEL_TYPES, build_tiny
from tests.reference import ReferenceModel
from tests.unit.runner.driver import Checkpoint, Driver


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are too small to share among threads."""
    torch.set_num_threads(1)


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    """Noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass
class Tiny:
    """One family's checkpoint, the reference on all of it, and Percept's LLM half with a driver.

    Attributes:
        placeholder: token id that stands for a picture in a prompt.
        pictures: stored under keys "p0", "p1", ... in the driver's rows.
        answers: of the reference, by question.
    """

    checkpoint: Checkpoint
    reference: ReferenceModel
    driver: Driver
    placeholder: int
    pictures: list[Image.Image]
    answers: dict[tuple[tuple[int, ...], ...], list[int]] = field(default_factory=dict)

    def prompt(self, picture_count: int, text: str) -> list[int]:
        """A rendered chat prompt with so many placeholders."""
        content = [{"type": "image"}] * picture_count + [{"type": "text", "text": text}]
        return self.reference.chat([{"role": "user", "content": content}])

    def expected(self, prompt: list[int], picture_ids: list[int], count: int) -> list[int]:
        """What transformers' `generate` answers, computed once; no token ends it early."""
        question = (tuple(prompt), tuple(picture_ids), (count,))
        if question not in self.answers:
            pictures = [self.pictures[index] for index in picture_ids]
            self.answers[question] = self.reference.generate(prompt, pictures, count, eos_token_id=None)
        return self.answers[question]


class Tinies(Protocol):
    """Finds a family's tiny checkpoint by model type; see `EngineSettings.kernels`."""

    def __call__(self, model_type: str, kernels: str = "auto") -> Tiny: ...


@pytest.fixture(scope="session")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Tinies:
    """Makes each once; the reference and its answers serve both ways of computing."""
    made: dict[tuple[str, str], Tiny] = {}

    def make(model_type: str, kernels: str = "auto") -> Tiny:
        name = (model_type, kernels)
        if name not in made and kernels == "auto":
            folder = build_tiny(model_type, tmp_path_factory.mktemp(model_type))  # type: ignore[arg-type]
            made[name] = make_tiny(folder)
        elif name not in made:
            tiny = make(model_type)
            driver = Driver(tiny.checkpoint, kernels=kernels)
            driver.rows = tiny.driver.rows
            made[name] = replace(tiny, driver=driver)
        return made[name]

    return make


def make_tiny(folder: Path) -> Tiny:
    """Loads a checkpoint twice: all of it for the reference, its LLM half for the driver."""
    checkpoint = Checkpoint(folder)
    driver = Driver(checkpoint)
    pictures = [picture(0), picture(1), picture(2, width=140, height=84)]
    for index, each in enumerate(pictures):
        driver.rows.items[f"p{index}"] = checkpoint.encode(each)
    placeholder = checkpoint.layout.placeholder_ids()["image"]
    return Tiny(checkpoint, ReferenceModel(folder), driver, placeholder, pictures)


# Each family on our kernels, and the modeling code with one and with three axes.
WAYS = [*((model_type, "auto") for model_type in MODEL_TYPES), ("qwen2_vl", "torch"), ("llava", "torch")]


@pytest.fixture(params=WAYS, ids="-".join, scope="session")
def tiny(request: pytest.FixtureRequest, tinies: Tinies) -> Tiny:
    """Each family in turn."""
    return tinies(*request.param)
