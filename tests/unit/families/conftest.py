"""Tiny checkpoints and pictures for the families' tests, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.checkpoint import read_checkpoint
from shared.families import load_family
from shared.families.base import Family
from shared.families.parts import PART_TOKEN_COUNTS
from tests.families import all_variants
from tests.reference import ReferenceModel

EVERY = all_variants()
"""Every family's kinds of checkpoints, for what must hold of all: case and options' name."""

VARIANTS = ("qwen2_vl", "qwen2_5_vl", "llava", "llava_siglip_qwen2", "llava_mistral", "llava_next")
"""Those of the families that are tested in detail, with transformers in this process."""

Build = Callable[[str], Path]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos that are small enough for tests have several parts."""
    monkeypatch.setitem(PART_TOKEN_COUNTS, "cpu", 256)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Returns the folder of a variant's checkpoint."""
    folders: dict[str, Path] = {}

    def build(variant: str) -> Path:
        if variant not in folders:
            case, options = EVERY[variant]
            folders[variant] = case.build(tmp_path_factory.mktemp(variant), **case.variants[options])
        return folders[variant]

    return build


@pytest.fixture(scope="session")
def reference(tiny: Build) -> Callable[[str], ReferenceModel]:
    """Returns a variant's whole model in transformers."""
    models: dict[str, ReferenceModel] = {}

    def load(variant: str) -> ReferenceModel:
        if variant not in models:
            models[variant] = ReferenceModel(tiny(variant))
        return models[variant]

    return load


@pytest.fixture(scope="session")
def family(tiny: Build) -> Callable[[str], Family]:
    """Returns a variant's family."""
    return lambda variant: load_family(read_checkpoint(tiny(variant)))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Pictures of different sizes, smooth enough that resizing keeps their differences."""
    return [_picture(seed, size) for seed, size in enumerate([(56, 56), (140, 84), (61, 150), (300, 200)])]


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
