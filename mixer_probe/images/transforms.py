"""The transform that a network's weights were made for, from timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from PIL import Image

from mixer_probe.core.errors import ImagesError, ModelError
from mixer_probe.core.inputs import InputSpec

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]


def model_transform(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> Transform:
    """timm's evaluation transform: RGB image -> float32 tensor [C, H, W], (value / 255 - mean) /
    std.

    The arguments are those of `InputSpec`; `input_size` is (3, H, W) in pixels, or (1, H, W) for a
    network that sees grey. An image of exactly the input size is not resampled when `crop_pct` is
    1. Picklable.

    Raises ImagesError for what `InputSpec` refuses."""
    try:
        size, means, stds = (cast(Any, tuple(values)) for values in (input_size, mean, std))
        spec = InputSpec(size, means, stds, interpolation, crop_pct, crop_mode)
    except (ModelError, TypeError) as error:
        raise ImagesError(str(error)) from error
    return transform_for(spec)


def transform_for(spec: InputSpec) -> Transform:
    """timm's evaluation transform of images for a network with this input: image -> float32 tensor
    [C, H, W].

    For one channel the image becomes grey first (ITU-R 601 luma, as Pillow does it); a grey image
    stays as it is. A torchvision Compose that ends in Normalize, whatever timm resizes and crops
    before it. Picklable.

    For another number of channels, which no image says how to fill, the transform raises
    ImagesError at the first image."""
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose, Grayscale, Normalize

    channels = spec.size[0]
    if channels not in (1, 3):
        # Tensors of pixels need no more than the Normalize.
        return cast(Transform, Compose([_NoImages(spec.size), Normalize(spec.mean, spec.std)]))
    steps = create_transform(
        spec.size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    ).transforms
    return cast(Transform, Compose([Grayscale(), *steps] if channels == 1 else steps))


@dataclass(frozen=True)
class _NoImages:
    """Refuses every image, for a network that takes none."""

    size: tuple[int, int, int]

    def __call__(self, _image: Image.Image) -> torch.Tensor:
        channels, height, width = self.size
        raise ImagesError(
            f"the network takes {channels} channels, and an image has 1 (grey) or 3 (red, green, "
            f"blue): give a tensor [n, {channels}, {height}, {width}]"
        )


def split_transform(
    transform: Transform,
) -> tuple[Transform, Callable[[torch.Tensor], torch.Tensor]]:
    """A transform up to its pixels in 0..1, and the normalisation that ends it (nothing, where it
    does not end in one)."""
    from torchvision.transforms import Compose, Normalize

    steps = getattr(transform, "transforms", ())
    if steps and isinstance(steps[-1], Normalize):
        return Compose(steps[:-1]), steps[-1]
    return transform, torch.nn.Identity()
