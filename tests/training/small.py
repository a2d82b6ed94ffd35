"""Tiny networks and images of random colours around that of their class, for tests of training."""

from __future__ import annotations

from typing import Any

import torch

from mixer_probe.training import Recipe, TrainingImages

CLASSES = ("red", "green", "blue")
SIZES: dict[str, dict[str, Any]] = {
    "mixer": {"img_size": 16, "patch_size": 4, "num_blocks": 2, "embed_dim": 16},
    "vit": {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2},
    "resnet": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
}
DROPPED = {
    "mixer": {"proj_drop_rate": 0.1, "drop_path_rate": 0.1},
    "vit": {"proj_drop_rate": 0.1, "attn_drop_rate": 0.1},
    "resnet": {"drop_rate": 0.1, "drop_path_rate": 0.1},
}


def images(n: int = 48, name: str = "train", seed: int = 0) -> TrainingImages:
    """`n` images of 16x16 pixels in three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = torch.randint(206, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(n), labels] += 50
    return TrainingImages(pixels, labels, CLASSES, name, f"{seed:064x}")


def recipe(network: str = "mixer", **changes: Any) -> Recipe:
    """Four steps an epoch on 48 images, 24 steps in all; `arguments` are added to the size."""
    arguments = {**SIZES.get(network, {}), **changes.pop("arguments", {})}
    return Recipe(network, arguments, **{"epochs": 6, "batch_size": 12, "warmup": 0.25, **changes})
