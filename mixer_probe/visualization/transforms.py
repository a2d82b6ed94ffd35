"""Random views of an image at every step, to which high-frequency patterns that activate a unit are
not robust.

Olah et al. 2017 jitter, scale and rotate; Fel et al. 2023 (MACO) crop and add noise. Both are one
affine transformation here, with one bilinear resampling; beyond its edge the image is reflected."""

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
class Transforms:
    """Distribution of views, uniform in each parameter: `window` is the side of the view as a
    fraction of the image's (below 1 zooms in), `rotation` the largest angle in degrees.

    The window is in the middle of the image, moved by whole pixels up to `shift` of its side; or
    anywhere `inside` it (crops). `noise` is the standard deviation of noise added to pixels in
    0..1, falling to 0 at the last step. The gradient of a step is the mean over `views`. Raises
    MeasureError for values out of range."""

    shift: float = 0.05
    window: tuple[float, float] = (0.9, 1.1)
    rotation: float = 5.0
    inside: bool = False
    noise: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 < low <= high or (self.inside and high > 1):
            raise MeasureError(
                "window is a range of fractions above 0 (and at most 1 with inside=True), not "
                f"{self.window}"
            )
        if not 0 <= self.shift < 1 or self.noise < 0 or not 0 <= self.rotation <= 180:
            raise MeasureError(
                "shift is a fraction from 0 to 1, rotation an angle from 0 to 180 degrees, noise 0 "
                "or more"
            )
        if self.views < 1:
            raise MeasureError(f"views must be 1 or more, not {self.views}")

    def draw(self, generator: Generator, size: tuple[int, int]) -> AffineParams:
        """`views` random views."""
        low, high = self.window
        window = low + (high - low) * torch.rand(
            self.views, generator=generator, dtype=torch.float64
        )
        angle = math.radians(self.rotation) * (
            2 * torch.rand(self.views, generator=generator, dtype=torch.float64) - 1
        )
        if self.inside:
            fraction = torch.rand(self.views, 2, generator=generator, dtype=torch.float64) - 0.5
            centre = fraction * (1 - window)[:, None] * torch.tensor(size, dtype=torch.float64)
        else:
            most = [round(self.shift * side) for side in size]
            centre = torch.stack(
                [torch.randint(-m, m + 1, (self.views,), generator=generator) for m in most], 1
            ).double()
        return AffineParams(window, centre, angle)

    def apply(
        self, images: Tensor, seed: Tensor, generators: list[Generator], noise: float
    ) -> Tensor:
        """Random views [view * image, 3, h, w] of images [image, 3, h, w], the same for all images
        of one `seed` [image], an index into the generators; `noise` is the fraction of the noise at
        this step."""
        size = (images.shape[2], images.shape[3])
        drawn = [self.draw(generator, size) for generator in generators]
        # Drawn seed by seed, taken view by view.
        index = (seed * self.views + torch.arange(self.views)[:, None]).flatten()
        window, centre, angle = (
            torch.cat([getattr(d, name) for d in drawn])[index]
            for name in ("window", "centre", "angle")
        )
        views = sample_views(
            images.repeat(self.views, 1, 1, 1), AffineParams(window, centre, angle)
        )
        if not self.noise:
            return views
        shape = (self.views, *views.shape[1:])
        added = torch.stack(
            [torch.randn(shape, generator=generator) for generator in generators], 1
        )
        return views + self.noise * noise * added[:, seed].reshape(views.shape).to(views)


FOURIER_TRANSFORMS = Transforms()
MACO_TRANSFORMS = Transforms(
    shift=0.0, window=(0.7, 1.0), rotation=0.0, inside=True, noise=0.08, views=2
)
NO_TRANSFORMS = Transforms(shift=0.0, window=(1.0, 1.0), rotation=0.0)


@dataclass(frozen=True)
class AffineParams:
    """Position of views in their images: side of the `window` as a fraction [view], its `centre`
    [view, (row, column)] in pixels from the middle of the image, and its `angle` [view] in
    radians."""

    window: Tensor
    centre: Tensor
    angle: Tensor


def sample_views(images: Tensor, params: AffineParams) -> Tensor:
    """Views of images [n, 3, h, w] with n parameters, bilinear, in the size of the images.

    A window of 1 in the middle at no angle is the image itself; centres a whole number of pixels
    away only shift it."""
    height, width = images.shape[2:]
    cos, sin = params.angle.cos() * params.window, params.angle.sin() * params.window
    row, column = params.centre.unbind(1)
    # affine_grid counts x and y from -1 to 1, whatever the sides are.
    x = torch.stack([cos, -sin * height / width, 2 * column / width], 1)
    y = torch.stack([sin * width / height, cos, 2 * row / height], 1)
    # In float64: the grid decides between whole pixels.
    grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid.to(images), mode="bilinear", padding_mode="reflection", align_corners=False
    )
