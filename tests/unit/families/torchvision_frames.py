"""`python torchvision_frames.py FOLDER IN OUT`: frames as transformers resizes and normalises them.

FOLDER holds torchvision; see tests/oracle_program.py, of which this is a small sister.
IN holds `frames_i` and `size_i`, and `mean` and `std`; OUT gets one array for each `i`,
filter and treatment, named `i filter treatment`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

TREATMENTS = {"both": (True, True), "scaled": (True, False), "normalised": (False, True)}


def main(arguments: list[str]) -> None:
    """Writes OUT."""
    sys.path += [arguments[0]]
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from tests.oracle_program import declare_operators

    alive = declare_operators()
    from torchvision.transforms import InterpolationMode
    from transformers import BaseVideoProcessor
    from transformers.image_utils import SizeDict

    given = np.load(arguments[1])
    mean, std = (tuple(given[name].tolist()) for name in ("mean", "std"))
    processor: Any = BaseVideoProcessor()
    answers = {}
    for name in [name for name in given.files if name.startswith("frames_")]:
        number = name.removeprefix("frames_")
        height, width = given[f"size_{number}"].tolist()
        (video,) = processor._prepare_input_videos([given[name]], input_data_format="channels_last")
        for filter_name in ("bicubic", "bilinear", "lanczos"):
            resized = processor.resize(
                video[None], SizeDict(height=height, width=width), InterpolationMode(filter_name)
            )
            for treatment, (scales, normalises) in TREATMENTS.items():
                pixels = processor.rescale_and_normalize(
                    resized, scales, 1 / 255, normalises, mean if normalises else None, std
                )
                answers[f"{number} {filter_name} {treatment}"] = pixels[0].numpy()
    np.savez(arguments[2], **answers)
    del alive


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
