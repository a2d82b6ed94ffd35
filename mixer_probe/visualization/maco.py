"""MACO: images with the average spectrum of natural ones, of which only the phases are free.

Fel et al. 2023, "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained
Optimization"."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from mixer_probe.core.errors import ImagesError
from mixer_probe.visualization.fourier import colour_basis, edges, opposite


@dataclass(frozen=True)
class Spectrum:
    """What natural images have in common: `magnitude` [3 components, h, w // 2 + 1], the mean of
    the absolute values of their orthonormal FFT in the colour components of `colour_basis`, 0 at
    the constant; `mean` [3], their mean colour in 0..1."""

    magnitude: Tensor
    mean: Tensor
    size: tuple[int, int]
    n: int


def natural_spectrum(batches: Iterable[Tensor]) -> Spectrum:
    """The average spectrum of RGB images [n, 3, h, w] in 0..1, in float64. Raises ImagesError if
    there are none."""
    inverse = torch.linalg.inv(colour_basis(torch.float64))
    magnitude, colour, n, size = torch.zeros(()), torch.zeros(3, dtype=torch.float64), 0, (0, 0)
    for batch in batches:
        pixels = batch.detach().cpu().double()
        components = torch.einsum("ij,bjhw->bihw", inverse, pixels)
        magnitude = magnitude + torch.fft.rfft2(components, norm="ortho").abs().sum(0)
        colour += pixels.mean((2, 3)).sum(0)
        n, size = n + len(pixels), (pixels.shape[2], pixels.shape[3])
    if not n:
        raise ImagesError("the average spectrum needs images, and there are none")
    magnitude = magnitude / n
    # The constant is the mean colour, which is known with its sign.
    magnitude[:, 0, 0] = 0
    return Spectrum(magnitude, colour / n, size, n)


class MacoImages:
    """Images whose spectrum has the magnitude of a `Spectrum`, by its phases [image, 3, h, w // 2 +
    1] in radians."""

    def __init__(self, spectrum: Spectrum, like: Tensor) -> None:
        self.size = spectrum.size
        self._like = like
        self._magnitude = spectrum.magnitude.to(like)
        self._mean = spectrum.mean.to(like)[:, None, None]
        self._edges = edges(spectrum.size).to(like.device)
        self._basis = colour_basis(torch.float64).to(like)

    def start(self, generators: list[Generator]) -> Tensor:
        """Uniform phases, one image a generator."""
        shape = self._magnitude.shape
        drawn = [
            math.tau * torch.rand(shape, generator=g, dtype=torch.float64) - math.pi
            for g in generators
        ]
        return torch.stack(drawn).to(self._like)

    def components(self, parameters: Tensor) -> Tensor:
        """Colour components [image, 3, h, w] around their mean: their orthonormal FFT has exactly
        the magnitude asked for."""
        # Opposite frequencies of a real image have opposite phases; the few without a partner are
        # real, and positive here.
        phase = torch.where(self._edges, parameters - opposite(parameters), parameters)
        components: Tensor = torch.fft.irfft2(
            torch.polar(self._magnitude.expand_as(phase), phase), s=self.size, norm="ortho"
        )
        return components

    def images(self, parameters: Tensor) -> Tensor:
        """RGB images [image, 3, h, w], clipped to 0..1."""
        colours = torch.einsum("ij,bjhw->bihw", self._basis, self.components(parameters))
        return (self._mean + colours).clamp(0, 1)
