"""The transform that a network's weights were made for, from timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from PIL import Image

from mixer_probe.errors import ImagesError, closest

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "border", "squash")


def model_transform(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> Transform:
    """timm's evaluation transform: RGB image -> float32 tensor [3, H, W], (value / 255 - mean) / std.

    `input_size` is (3, H, W) in pixels, `mean` and `std` are one number a channel. The shorter side is
    resized to input size / `crop_pct` and the centre cut out ("border" and "squash" as in timm); an image of
    exactly the input size is not resampled when `crop_pct` is 1. Picklable.

    Raises ImagesError for an input size, crop_pct, interpolation or crop mode that timm does not know."""
    _check(input_size, interpolation, crop_pct, crop_mode)
    from timm.data.transforms_factory import create_transform

    return cast(
        Transform,
        create_transform(
            (input_size[0], input_size[1], input_size[2]),
            is_training=False,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        ),
    )


def _check(input_size: Sequence[int], interpolation: str, crop_pct: float, crop_mode: str) -> None:
    if len(input_size) != 3 or input_size[0] != 3 or min(input_size) < 1:
        raise ImagesError(f"input_size must be (3, height, width) in pixels, got {tuple(input_size)}")
    if not 0 < crop_pct <= 1:
        raise ImagesError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
    if interpolation not in _INTERPOLATIONS:
        known = closest(interpolation, _INTERPOLATIONS)
        raise ImagesError(f"unknown interpolation '{interpolation}'; {known}")
    if crop_mode not in _CROP_MODES:
        raise ImagesError(f"unknown crop mode '{crop_mode}'; {closest(crop_mode, _CROP_MODES)}")
