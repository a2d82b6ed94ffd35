"""Baseline inputs that attributions compare an image with: grey, black, the mean colour, or the
image itself blurred.

The default is grey, pixel value 0.5: the same image for every network, whatever its mean and
standard deviation are, and as far from dark pixels as from bright ones (black would say that dark
pixels contribute nothing; Sturmfels et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.inputs import InputSpec

_PIXELS = {"grey": 0.5, "black": 0.0}


@dataclass(frozen=True)
class Baseline:
    """A baseline input, and the text that states it: `of` maps images [B, 3, H, W] to their
    baselines."""

    name: str
    text: str
    of: Callable[[Tensor], Tensor]
    image: Tensor | None = None


def make_baseline(baseline: str | Tensor, spec: InputSpec) -> Baseline:
    """The baseline called "grey" (pixel value 0.5), "black" (0), "mean" (0 after normalisation: the
    mean colour of the training images, which differs between networks) or "blur" (Gaussian, sigma
    an eighth of the shorter side), or a normalised image [3, H, W].

    Raises MeasureError for another name or shape."""
    if isinstance(baseline, Tensor):
        if tuple(baseline.shape) != spec.size:
            raise MeasureError(
                f"a baseline image has shape {spec.size}, not {tuple(baseline.shape)}"
            )
        return Baseline(
            "image", "an image that was given", lambda x: baseline.to(x).expand_as(x), baseline
        )
    if baseline in _PIXELS:
        pixel = _PIXELS[baseline]
        colour = [(pixel - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
        values = torch.tensor(colour, dtype=torch.float64).view(-1, 1, 1)
        return Baseline(
            baseline, f"{baseline} (pixel value {pixel:g})", lambda x: values.to(x).expand_as(x)
        )
    if baseline == "mean":
        return Baseline("mean", "the mean colour (0 after normalisation)", torch.zeros_like)
    if baseline == "blur":
        shorter = min(spec.size[1:])
        sigma = shorter / 8
        # The kernel reaches two standard deviations; reflection at the border allows no more than
        # the image itself.
        size = 2 * min(round(2 * sigma), shorter - 1) + 1
        return Baseline(
            "blur",
            f"the image blurred (sigma {sigma:g} px)",
            lambda x: gaussian_blur(x, [size] * 2, [sigma] * 2),
        )
    raise MeasureError(f"no baseline '{baseline}'; {closest(baseline, (*_PIXELS, 'mean', 'blur'))}")
