"""Images as Fourier coefficients: all frequencies are equally easy to change, and colours are as
decorrelated as in photographs.

Gradient ascent on pixels ends in high frequencies; ascent on coefficients divided by their
frequency starts from the spectrum of natural images and stays near it (Olah et al. 2017, "Feature
Visualization"; lucid, optvis/param/spatial.py and color.py)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

# Square root of the covariance of colours in ImageNet, from its singular value decomposition
# (lucid, optvis/param/color.py): its columns are light-dark, blue-yellow and green-magenta, each as
# long as colours spread along it.
COLOUR_SPREAD = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
# lucid's: small enough that an image starts as a nearly uniform grey.
_START_STD = 0.01
_GAIN = 0.25


def colour_basis(dtype: torch.dtype = torch.float32) -> Tensor:
    """[3 colours, 3 components]: from decorrelated components to red, green, blue; the longest
    column has length 1."""
    spread = torch.tensor(COLOUR_SPREAD, dtype=torch.float64)
    longest: Tensor = torch.linalg.vector_norm(spread, dim=0).max()
    return (spread / longest).to(dtype)


def frequencies(size: tuple[int, int]) -> Tensor:
    """Length of the frequency of every coefficient of `torch.fft.rfft2`, in cycles a pixel: [h, w
    // 2 + 1] in float64."""
    rows = torch.fft.fftfreq(size[0], dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(size[1], dtype=torch.float64)[None]
    return torch.hypot(rows.expand(-1, columns.shape[1]), columns.expand(rows.shape[0], -1))


def amplitude(size: tuple[int, int], decay: float = 1.0) -> Tensor:
    """What a coefficient is multiplied by, 1 / max(f, 1 / max(h, w)) ** decay: [h, w // 2 + 1] in
    float64."""
    lowest = 1 / max(size)
    return frequencies(size).clamp_min(lowest) ** -decay


def edges(size: tuple[int, int]) -> Tensor:
    """Which columns [w // 2 + 1] of an rfft2 hold each frequency together with its opposite: 0, and
    the last one of an even w."""
    column = torch.arange(size[1] // 2 + 1)
    return (column == 0) | (2 * column == size[1])


def opposite(spectrum: Tensor) -> Tensor:
    """[..., h, columns] with the rows of the frequencies -f in the places of f."""
    return spectrum.flip(-2).roll(1, -2)


def draw_normal(generators: list[Generator], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers [generator, *shape], drawn on the CPU, so that they do not depend on
    the device."""
    drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators]
    return torch.stack(drawn).to(like)


class FourierImages:
    """Images of `size` (height, width) by the real and imaginary parts of their scaled spectra,
    [image, 3, h, w // 2 + 1, 2].

    `linear` is linear and onto; independent standard normal coefficients give every frequency f of
    a colour component the mean power 2 * amplitude(f)^2 of an orthonormal FFT, the ones without a
    partner in the half plane included (lucid's get half of that). `images` squeezes that into 0..1
    by a sigmoid."""

    def __init__(self, size: tuple[int, int], like: Tensor, decay: float = 1.0) -> None:
        self.size = size
        self._like = like
        self._amplitude = amplitude(size, decay).to(like)
        self._edges = edges(size).to(like.device)
        self._basis = colour_basis(torch.float64).to(like)

    def start(self, generators: list[Generator]) -> Tensor:
        """Coefficients of nearly grey images, one a generator."""
        return _START_STD * draw_normal(generators, (3, *self._amplitude.shape, 2), self._like)

    def linear(self, parameters: Tensor) -> Tensor:
        """Values of red, green and blue without bounds, [image, 3, h, w]; 0 is grey."""
        spectrum = torch.view_as_complex(parameters.contiguous()) * self._amplitude
        # A real image has opposite coefficients at opposite frequencies; those that rfft2 stores
        # twice are made so here, since what an inverse FFT does about them depends on the library.
        paired = (spectrum + opposite(spectrum).conj()) / 2**0.5
        components = torch.fft.irfft2(
            torch.where(self._edges, paired, spectrum), s=self.size, norm="ortho"
        )
        return _GAIN * torch.einsum("ij,bjhw->bihw", self._basis, components)

    def parameters_of(self, values: Tensor) -> Tensor:
        """Coefficients whose `linear` these values [image, 3, h, w] are."""
        components = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self._basis), values) / _GAIN
        spectrum = torch.fft.rfft2(components, norm="ortho") / self._amplitude
        return torch.view_as_real(torch.where(self._edges, spectrum / 2**0.5, spectrum))

    def images(self, parameters: Tensor) -> Tensor:
        """RGB images [image, 3, h, w] in 0..1."""
        return torch.sigmoid(self.linear(parameters))
