"""Makes `import torchvision` work beside a torch for which its native part was not built.

Copied into a peer's environment as `sitecustomize.py`, so it uses nothing of ours. Just before
torchvision is imported it declares the two operators whose absence ends that import. They stay
without a body: nothing that is measured detects objects.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

DECLARED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(MetaPathFinder):
    """Finds no module; declares the operators when torchvision is looked for, once."""

    def __init__(self) -> None:
        self._library: Any = None

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Always None: the ordinary finders go on."""
        if fullname == "torchvision" and self._library is None:
            import torch

            library: Any = torch.library.Library
            self._library = library("torchvision", "FRAGMENT")
            for declaration in DECLARED:
                if not hasattr(torch.ops.torchvision, declaration.partition("(")[0]):
                    self._library.define(declaration)


sys.meta_path.insert(0, BeforeTorchvision())
