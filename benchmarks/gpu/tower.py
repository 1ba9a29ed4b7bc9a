"""The vision tower on pictures of one size: its operations per second, as a share of the product's rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.gpu.clock import median_seconds
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.models import DTYPE, random_tower
from benchmarks.gpu.sizes import ModelSizes, Scale
from shared.families.base import Features, Grid, MediaInfo


def measure_tower(sizes: ModelSizes, scale: Scale, limits: Limits) -> dict[str, Any]:
    """A batch of pictures through the module alone, and from host memory to rows."""
    device = torch.device(scale.device)
    tower, module, vision = random_tower(sizes, device)
    rows, columns = (side // vision.patch_size for side in scale.picture)
    patches = rows * columns
    batch = [picture_features(vision, rows, columns, seed) for seed in range(scale.pictures)]
    pixels = torch.cat([torch.from_numpy(each.arrays["pixel_values"]) for each in batch]).to(device, DTYPE)
    grids = torch.tensor([[1, rows, columns]] * scale.pictures, device=device)
    with torch.inference_mode():
        took = median_seconds(lambda: module(pixels, grid_thw=grids), device, scale.repeats)
        whole = median_seconds(lambda: tower.encode(batch), device, scale.repeats)
    operations = scale.pictures * tower_operations(vision, module, patches)
    return {
        "model": sizes.name,
        "pictures": scale.pictures,
        "patches": patches,
        "ms": took * 1e3,
        "from_host_ms": whole * 1e3,
        "operations": operations,
        "share": operations / took / limits.operations_per_s,
        "from_host_share": operations / whole / limits.operations_per_s,
    }


def picture_features(vision: Any, rows: int, columns: int, seed: int) -> Features:
    """Noise of a picture's size, as a preprocessor gives it."""
    elements = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = np.random.default_rng(seed).standard_normal((rows * columns, elements), dtype=np.float32)
    count = rows * columns // vision.spatial_merge_size**2
    arrays = {"pixel_values": pixels, "image_grid_thw": np.array([[1, rows, columns]])}
    return Features(MediaInfo(count, (Grid(1, rows, columns),)), arrays, rows * columns)


def tower_operations(vision: Any, module: torch.nn.Module, patches: int) -> float:
    """Products of all layers on one picture, and attention over whole pictures and over windows."""
    merged = vision.spatial_merge_size**2
    products = 0.0
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            rows = patches / merged if name.startswith("merger.") else patches
            products += 2.0 * parameter.numel() * rows
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    seen: int = full * patches + (vision.depth - full) * min(window, patches)
    return products + 4.0 * int(vision.hidden_size) * patches * seen
