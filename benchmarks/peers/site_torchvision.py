"""Makes torchvision work beside a torch for which its native part was not built.

Copied into a peer's environment as `sitecustomize.py`, so it uses nothing of ours. Just before
torchvision is imported it declares the two operators whose absence ends that import (they stay
without a body: nothing that is measured detects objects), and it has Pillow decode images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DECLARED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class WithPillow(Loader):
    """Loads torchvision's image module and replaces its decoder."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        found: ModuleType | None = self._own.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader does, and then some."""
        self._own.exec_module(module)
        if not hasattr(sys.modules["torch"].ops.image, "decode_image"):
            module.__dict__["decode_image"] = decode_image


class BeforeTorchvision(MetaPathFinder):
    """Declares the operators when torchvision is looked for, once."""

    def __init__(self) -> None:
        self._library: Any = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None but for the image module: the ordinary finders go on."""
        if fullname == "torchvision" and self._library is None:
            self._declare()
        if fullname != "torchvision.io.image":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = WithPillow(spec.loader)
        return spec

    def _declare(self) -> None:
        import torch

        library: Any = torch.library.Library
        self._library = library("torchvision", "FRAGMENT")
        for declaration in DECLARED:
            if not hasattr(torch.ops.torchvision, declaration.partition("(")[0]):
                self._library.define(declaration)


def decode_image(data: Any, *_: Any, **__: Any) -> Any:
    """Encoded bytes, uint8 (n,), or a path to upright RGB pixels, uint8 (3, height, width)."""
    import io

    import numpy as np
    import torch
    from PIL import Image, ImageOps

    file = io.BytesIO(data.numpy().tobytes()) if isinstance(data, torch.Tensor) else data
    with Image.open(file) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


sys.meta_path.insert(0, BeforeTorchvision())
