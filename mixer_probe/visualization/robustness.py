"""Small random changes of the view at every step: what excites a unit only pixel by pixel does not survive them.

Olah et al. 2017 jitter, scale and rotate; Fel et al. 2023 (MACO) crop and add noise. Both are one affine change of the view here,
made by one bilinear resampling; what lies beyond the edge of the image is its mirror image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked


@checked(MeasureError)
@dataclass(frozen=True)
class Robustness:
    """How views are drawn, uniformly each: `window` is the side of what is seen as a share of the image's (below 1 zooms in),
    `rotation` the largest angle in degrees.

    The window is in the middle of the image, moved by whole pixels up to `shift` of its side; or anywhere `inside` it (crops).
    `noise` is the standard deviation of what is added to pixels in 0..1, falling to 0 at the last step. The gradient of a step
    is the mean over `views`. Raises MeasureError for values out of range."""

    shift: float = 0.05
    window: tuple[float, float] = (0.9, 1.1)
    rotation: float = 5.0
    inside: bool = False
    noise: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 < low <= high or (self.inside and high > 1):
            raise MeasureError(f"window is a range of fractions above 0 (and at most 1 with inside=True), not {self.window}")
        if not 0 <= self.shift < 1 or self.noise < 0 or not 0 <= self.rotation <= 180:
            raise MeasureError("shift is a fraction from 0 to 1, rotation an angle from 0 to 180 degrees, noise 0 or more")
        if self.views < 1:
            raise MeasureError(f"views must be 1 or more, not {self.views}")

    def draw(self, generator: Generator, size: tuple[int, int]) -> Placement:
        """`views` random placements."""
        low, high = self.window
        window = low + (high - low) * torch.rand(self.views, generator=generator, dtype=torch.float64)
        angle = math.radians(self.rotation) * (2 * torch.rand(self.views, generator=generator, dtype=torch.float64) - 1)
        return Placement(window, self._centre(generator, size, window), angle)

    def _centre(self, generator: Generator, size: tuple[int, int], window: Tensor) -> Tensor:
        sides = torch.tensor(size, dtype=torch.float64)
        if self.inside:
            share = torch.rand(self.views, 2, generator=generator, dtype=torch.float64) - 0.5
            return share * (1 - window)[:, None] * sides
        most = [round(self.shift * side) for side in size]
        drawn = [torch.randint(-m, m + 1, (self.views,), generator=generator) for m in most]
        return torch.stack(drawn, 1).double()


FOURIER_ROBUSTNESS = Robustness()
MACO_ROBUSTNESS = Robustness(shift=0.0, window=(0.7, 1.0), rotation=0.0, inside=True, noise=0.08, views=2)
NO_ROBUSTNESS = Robustness(shift=0.0, window=(1.0, 1.0), rotation=0.0)


@dataclass(frozen=True)
class Placement:
    """Where views lie on their images: side of the `window` as a share [view], its `centre` [view, (row, column)] in pixels from
    the middle of the image, and its `angle` [view] in radians."""

    window: Tensor
    centre: Tensor
    angle: Tensor

    def take(self, index: Tensor) -> Placement:
        """The placements at `index`."""
        return Placement(self.window[index], self.centre[index], self.angle[index])


def join(placements: list[Placement]) -> Placement:
    """Placements one after the other."""
    window, centre, angle = ([getattr(p, name) for p in placements] for name in ("window", "centre", "angle"))
    return Placement(torch.cat(window), torch.cat(centre), torch.cat(angle))


def sample_views(images: Tensor, placement: Placement) -> Tensor:
    """What is seen of images [n, 3, h, w] at n placements, bilinear, in the size of the images.

    A window of 1 in the middle at no angle is the image itself; centres a whole number of pixels away only shift it."""
    height, width = images.shape[2:]
    cos, sin = placement.angle.cos() * placement.window, placement.angle.sin() * placement.window
    row, column = placement.centre.unbind(1)
    # affine_grid counts x and y from -1 to 1, whatever the sides are.
    x = torch.stack([cos, -sin * height / width, 2 * column / width], 1)
    y = torch.stack([sin * width / height, cos, 2 * row / height], 1)
    # In float64: the grid decides between whole pixels.
    grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="reflection", align_corners=False)
