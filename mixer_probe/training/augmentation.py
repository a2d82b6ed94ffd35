"""The augmentations of the zoo's training, one batch at a time and on the batch's own device.

Every image draws its own parameters. Images are [batch, 3, height, width]; colours are changed in
[0, 1], everything after that happens on normalised images, where 0 is the mean colour and fills
what is shifted in or erased. timm's Mixup and RandomErasing cannot replace this: they draw from the
global generators of NumPy and Python, not of torch, and work through a batch image by image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

COLOURS = (
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
)
GEOMETRIES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
KINDS = ("identity", *COLOURS, *GEOMETRIES)


@dataclass(frozen=True)
class Augmentation:
    """How strongly to augment.

    padding: largest random shift, in pixels. trivial: fraction of the images changed by one
    operation of `KINDS`, drawn uniformly with uniform strength (TrivialAugment, Müller and Hutter
    2021, with milder ranges for 32x32 images). erase: fraction of the images that lose a box (Zhong
    et al. 2017). mix: fraction of the images combined with another, half by mixup (Zhang et al.
    2017; weight from Beta(mixup_alpha, mixup_alpha)), half by CutMix (Yun et al. 2019).
    """

    padding: int = 4
    trivial: float = 1.0
    erase: float = 0.25
    mix: float = 0.8
    mixup_alpha: float = 0.8

    def distort(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Augment and normalise images [batch, 3, height, width] in [0, 1]; mean and std are [3, 1,
        1]."""
        shape = (len(images), 1, 1, 1)
        # The index in `KINDS` and the strength in [-1, 1] of each image's operation.
        kind = torch.randint(len(KINDS), shape, device=images.device)
        kind = kind * (torch.rand(shape, device=images.device) < self.trivial)
        strength = torch.rand(shape, device=images.device) * 2 - 1
        images = (recolour(images, kind, strength) - mean) / std
        return erase(warp(images, kind, strength, self.padding), self.erase)

    def combine(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images [batch, 3, height, width] and their class probabilities [batch, classes]."""
        own = mixing_weights(images, self.mix, self.mixup_alpha)
        other = torch.randperm(len(images), device=images.device)
        mixed = torch.lerp(images[other], images, own)
        return mixed, torch.lerp(targets[other], targets, own.mean(dim=(1, 2, 3))[:, None])


def recolour(images: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """Apply each image's operation where it is one of `COLOURS`; images in [0, 1] stay there."""
    grey = images.mean(dim=1, keepdim=True)
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    levels = torch.exp2(torch.floor(5 + 3 * strength))
    factor = 1 + 0.9 * strength
    recoloured = {
        "brightness": images * factor,
        "contrast": torch.lerp(grey.mean(dim=(2, 3), keepdim=True), images, factor),
        "saturation": torch.lerp(grey, images, factor),
        "sharpness": torch.lerp(blurred, images, factor),
        "posterize": torch.floor(images * levels) / levels,
        "solarize": torch.where(images > strength.abs(), 1 - images, images),
        "autocontrast": (images - low) / (high - low).clamp(min=1e-3),
    }
    for name, changed in recoloured.items():
        images = torch.where(kind == KINDS.index(name), changed, images)
    return images.clamp(0, 1)


def warp(images: Tensor, kind: Tensor, strength: Tensor, padding: int) -> Tensor:
    """Flip, shift and, where the operation is one of `GEOMETRIES`, rotate, shear or translate, in
    one go."""
    (height, width), device = images.shape[-2:], images.device

    def amount(name: str, largest: float) -> Tensor:
        return torch.where(kind == KINDS.index(name), strength * largest, 0.0).flatten()

    flip = torch.randint(2, (len(images),), device=device) * 2.0 - 1
    shift = torch.randint(-padding, padding + 1, (2, len(images)), device=device)
    angle = amount("rotate", math.pi / 6)
    row_x = [
        flip * angle.cos(),
        amount("shear_x", 0.4) - angle.sin(),
        shift[0] * (2 / width) + amount("translate_x", 0.6),
    ]
    row_y = [
        flip * (angle.sin() + amount("shear_y", 0.4)),
        angle.cos(),
        shift[1] * (2 / height) + amount("translate_y", 0.6),
    ]
    theta = torch.stack(row_x + row_y, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def boxes(images: Tensor, area: Tensor) -> Tensor:
    """Boxes of ones on zeros, [batch, 1, height, width], centred anywhere.

    `area` [batch] is the fraction of the image that they would cover if its border did not cut them
    off.
    """
    down, across = ((torch.arange(n, device=images.device) + 0.5) / n for n in images.shape[-2:])
    half = area.sqrt()[:, None] / 2
    inside_x = (across - torch.rand_like(half)).abs() < half
    inside_y = (down - torch.rand_like(half)).abs() < half
    return (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(images.dtype)


def erase(images: Tensor, fraction: float) -> Tensor:
    """Set a box of 2 to 33 % of the area to zero, the mean colour, in the given fraction of the
    images."""
    chosen = torch.rand(len(images), device=images.device) < fraction
    area = 0.02 + 0.31 * torch.rand(len(images), device=images.device)
    return images * (1 - boxes(images, area * chosen))


def mixing_weights(images: Tensor, fraction: float, mixup_alpha: float) -> Tensor:
    """The weight of each image in its mixture, per pixel, [batch, 1, height, width]."""
    batch, device = len(images), images.device
    choice = torch.rand(batch, device=device)
    alpha = torch.full((batch,), mixup_alpha, device=device)
    weight = Beta(alpha, alpha, validate_args=False).sample()
    mixup = torch.where(choice < fraction / 2, weight, 1.0)
    cut = torch.where(
        (choice >= fraction / 2) & (choice < fraction), torch.rand(batch, device=device), 0.0
    )
    return mixup[:, None, None, None] * (1 - boxes(images, cut))
