"""What an attribution compares an image with: grey, black, the mean colour, or the image itself blurred.

The default is grey, pixel value 0.5: the same picture for every network, whatever its mean and standard deviation are, and as far
from dark pixels as from bright ones (black would say that dark pixels contribute nothing; Sturmfels et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torchvision.transforms.v2.functional import gaussian_blur

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.inputs import InputSpec

_BLUR = 1 / 8


@dataclass(frozen=True)
class Baseline:
    """A baseline and the sentence that states it: `of` maps images [B, 3, H, W] to the images that stand for "nothing there"."""

    name: str
    text: str
    of: Callable[[torch.Tensor], torch.Tensor]
    image: torch.Tensor | None = None


def make_baseline(baseline: str | torch.Tensor, spec: InputSpec) -> Baseline:
    """ "grey" (pixel value 0.5), "black" (0), "mean" (0 after normalisation: the mean colour of the training images,
    another one for each network's own mean), "blur" (Gaussian, sigma an eighth of the shorter side), or a normalised image
    [3, H, W].

    Raises MeasureError for another name or shape."""
    if isinstance(baseline, torch.Tensor):
        if tuple(baseline.shape) != spec.size:
            raise MeasureError(f"a baseline image has shape {spec.size}, not {tuple(baseline.shape)}")
        return Baseline("image", "an image that was given", lambda x: baseline.to(x).expand_as(x), baseline)
    if baseline not in _MAKERS:
        raise MeasureError(f"no baseline '{baseline}'; {closest(baseline, _MAKERS)}")
    return _MAKERS[baseline](spec)


def _plain(name: str, pixel: float, spec: InputSpec) -> Baseline:
    values = torch.tensor([(pixel - m) / s for m, s in zip(spec.mean, spec.std, strict=True)], dtype=torch.float64).view(-1, 1, 1)
    return Baseline(name, f"{name} (pixel value {pixel:g})", lambda x: values.to(x).expand_as(x))


def _mean(_spec: InputSpec) -> Baseline:
    return Baseline("mean", "the mean colour (0 after normalisation)", torch.zeros_like)


def _blur(spec: InputSpec) -> Baseline:
    sigma = _BLUR * min(spec.size[1:])
    # The kernel reaches two standard deviations; reflection at the border allows no more than the image itself.
    size = 2 * min(round(2 * sigma), min(spec.size[1:]) - 1) + 1
    return Baseline("blur", f"the image blurred (sigma {sigma:g} px)", lambda x: gaussian_blur(x, [size, size], [sigma, sigma]))


_MAKERS: dict[str, Callable[[InputSpec], Baseline]] = {
    "grey": partial(_plain, "grey", 0.5),
    "black": partial(_plain, "black", 0.0),
    "mean": _mean,
    "blur": _blur,
}
