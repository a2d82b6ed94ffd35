"""Linear maps of channels that all positions share (1x1 convolutions), by ridge regression from
moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixer_probe.linear import ColumnScaling, Ridge
from mixer_probe.linear.ridge import eigen, gram
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import to_grid
from mixer_probe.similarity.predictivity import PENALTIES

_EPS = float(np.finfo(np.float32).eps)


def on_grid(values: Tensor, layer: Layer, grid: tuple[int, int]) -> Tensor:
    """`values` [image, position, channel] of a layer on another `grid`: averaged over its cells
    along sides where the layer's grid is finer, interpolated bilinearly where it is coarser."""
    assert layer.grid is not None
    between = max(layer.grid[0], grid[0]), max(layer.grid[1], grid[1])
    if between != layer.grid:
        image = values.transpose(1, 2).reshape(len(values), -1, *layer.grid)
        image = torch.nn.functional.interpolate(image, between, mode="bilinear")
        values, layer = image.flatten(2).transpose(1, 2), replace(layer, grid=between)
    return to_grid(values, layer, grid)


@dataclass
class MapMoments:
    """What ridge regressions of outputs Y [n, q] on inputs X [n, p] need, in O(p^2 + p q) memory
    and float64: `n`, and sums about an origin near the mean, of x, y, x x', x y' and the squares of
    y."""

    origin: tuple[Tensor, Tensor]
    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def about(cls, x: Tensor, y: Tensor) -> MapMoments:
        """No rows yet, about the origin `x` [p] and `y` [q]."""
        p, q = len(x), len(y)
        shapes = ((p,), (q,), (p, p), (p, q), (q,))
        return cls((x, y), 0, *(x.new_zeros(shape) for shape in shapes))

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add rows in float64."""
        X, Y = X - self.origin[0], Y - self.origin[1]
        self.n += len(X)
        self.x += X.sum(0)
        self.y += Y.sum(0)
        self.xx += gram(X)
        self.xy.addmm_(X.T, Y)
        self.yy += Y.square().sum(0)

    def __add__(self, other: MapMoments) -> MapMoments:
        """The moments of all rows of both, which have the same origin."""
        return MapMoments(
            self.origin,
            self.n + other.n,
            *(getattr(self, name) + getattr(other, name) for name in ("x", "y", "xx", "xy", "yy")),
        )

    def centred(self) -> MapMoments:
        """The same about the mean, which becomes the origin."""
        x, y = self.x / self.n, self.y / self.n
        return MapMoments(
            (self.origin[0] + x, self.origin[1] + y),
            self.n,
            torch.zeros_like(x),
            torch.zeros_like(y),
            torch.addr(self.xx, self.x, x, alpha=-1),
            torch.addr(self.xy, self.x, y, alpha=-1),
            self.yy - self.y * y,
        )


@dataclass(frozen=True)
class ChannelMap:
    """y = x W + b with `weight` W [p, q] and `bias` b [q].

    `scaling` are means and standard deviations of the inputs of the fit, `mean` and `deviation` [q]
    those of the outputs, `l2` the penalty, and `r2` the fraction of the variance of all outputs
    that the map explains on images that were held out of the choice."""

    weight: Tensor
    bias: Tensor
    scaling: ColumnScaling
    mean: Tensor
    deviation: Tensor
    l2: float
    r2: float

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [..., q] of inputs [..., p], in their type."""
        weight, bias = (part.to(x.device, x.dtype) for part in (self.weight, self.bias))
        return x @ weight + bias


def ridge_maps(fit: MapMoments, held: MapMoments, widths: Sequence[int]) -> list[ChannelMap]:
    """Ridge regressions with intercept of outputs that lie side by side, `widths` of which belong
    together, on standardised inputs.

    The penalty, one of `similarity.predictivity.PENALTIES` times the mean squared singular value of
    the standardised inputs, is that with the least squared error on the `held` images by the fit to
    the others, one for all outputs that belong together; the map is then fitted to all. No map
    where the inputs are constant."""
    part, rest, whole = fit.centred(), held.centred(), (fit + held).centred()
    ridge, final = _regression(part), _regression(whole)
    if not len(ridge.eigenvalues) or not len(final.eigenvalues):
        return []
    errors, away = [], rest.origin[1] - part.origin[1]
    for penalty in PENALTIES:
        W = _weights(ridge, penalty)
        bias = away - (rest.origin[0] - part.origin[0]) @ W
        product = (W * (rest.xx @ W - 2 * rest.xy)).sum(0)
        errors.append(rest.yy + product + rest.n * bias.square())
    left, total = torch.stack(errors), rest.yy + rest.n * away.square()
    deviation = (whole.yy / whole.n).clamp(min=0).sqrt()
    maps = []
    for columns in torch.split(torch.arange(left.shape[1]), list(widths)):
        summed = left[:, columns].sum(1)
        best = int(summed.argmin())
        W = _weights(final, PENALTIES[best], columns)
        maps.append(
            ChannelMap(
                W,
                whole.origin[1][columns] - whole.origin[0] @ W,
                final.scaling,
                whole.origin[1][columns],
                deviation[columns],
                float(PENALTIES[best] * final.eigenvalues.mean()),
                float(1 - summed[best] / total[columns].sum()),
            )
        )
    return maps


def _regression(m: MapMoments) -> Ridge:
    """The regressions of all outputs for every penalty, from moments about the mean."""
    scaling = ColumnScaling.of(m.origin[0], m.xx.diagonal() / m.n, True, _EPS)
    values, basis = eigen(m.xx / scaling.scale / scaling.scale[:, None])
    targets = basis.T @ (m.xy / scaling.scale[:, None])
    return Ridge(scaling, basis, values, targets, m.origin[1], m.n)


def _weights(ridge: Ridge, penalty: float, columns: Tensor | None = None) -> Tensor:
    """W [p, q] for raw inputs, for a penalty relative to the mean squared singular value."""
    chosen = ridge if columns is None else replace(ridge, targets=ridge.targets[:, columns])
    l2 = penalty * float(ridge.eigenvalues.mean())
    return chosen.coefficients(l2) / ridge.scaling.scale[:, None]
