"""Maps of a layer to the pixels of the input: bilinear, anchored at the receptive fields of the
positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from mixer_probe.core.errors import LayerError
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.models.trace import trace

_WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Anchor:
    """Along one side of the input, position i of the layer is centred on pixel `first` + i * `step`
    (pixel centres are whole)."""

    first: float
    step: float


def cell_anchor(pixels: int, cells: int) -> Anchor:
    """The centres of equal cells."""
    return Anchor((pixels / cells - 1) / 2, pixels / cells)


def anchors(model: Model, layer: Layer) -> tuple[Anchor, Anchor]:
    """The centres of the receptive fields of the rows and the columns of a layer's grid.

    From the strided convolutions and poolings that made the grid: position i of one of kernel k,
    dilation d, padding p and stride s is centred on position i s - p + d (k - 1) / 2 of its input
    (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks"). In a ResNet
    these are not the centres of cells: after stride 32 the two are 15.5 pixels apart. Where other
    modules made the grid too (merged patches, blurred pooling) it is the centres of its cells.

    Raises LayerError for a layer without a grid."""
    if layer.grid is None:
        raise LayerError(f"'{layer.name}' has no grid of positions")
    size = model.input.size[1:]
    sides: list[_Side] = [_Side(pixels) for pixels in size]
    modules = dict(model.module.named_modules())
    for call in trace(model.module, model.input.size)[: layer.order + 1]:
        if (
            isinstance(modules[call.path], _WINDOWED)
            and call.shape is not None
            and len(call.shape) == 4
        ):
            after = [
                side.through(modules[call.path], axis, call.shape[2 + axis])
                for axis, side in enumerate(sides)
            ]
            # A shortcut that runs beside the main path finds its result there already.
            sides = [side for side in after if side is not None] if None not in after else sides
    if tuple(side.length for side in sides) != layer.grid:
        return cell_anchor(size[0], layer.grid[0]), cell_anchor(size[1], layer.grid[1])
    return sides[0].anchor, sides[1].anchor


@dataclass(frozen=True)
class _Side:
    """A side of the grid reached so far."""

    length: int
    first: float = 0.0
    step: float = 1.0

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.first, self.step)

    def through(self, module: nn.Module, axis: int, length: int) -> _Side | None:
        """The side after a convolution or pooling that gave `length`; None if this side was not
        what it was given."""
        values = (
            getattr(module, name, 1) for name in ("kernel_size", "stride", "padding", "dilation")
        )
        # The padding "same" has no number.
        k, s, p, d = (
            v[axis] if isinstance(v, tuple) else v if isinstance(v, int) else 0 for v in values
        )
        reach = d * (k - 1)
        if length != (self.length + 2 * p - reach - 1) // s + 1:
            if p or length != -(-self.length // s):
                return None
            # Padded as TensorFlow does: as little as is needed, the odd pixel behind.
            p = max((length - 1) * s + reach + 1 - self.length, 0) // 2
        return _Side(length, self.first + self.step * (reach / 2 - p), self.step * s)


def interpolation(anchor: Anchor, cells: int, pixels: np.ndarray) -> np.ndarray:
    """Weights [pixel, cell] of linear interpolation between anchors at the `pixels`; beyond the
    outermost anchors it is constant.

    At the centres of cells this is what `torch.nn.functional.interpolate(mode="bilinear",
    align_corners=False)` does."""
    place = ((np.asarray(pixels, dtype=np.float64) - anchor.first) / anchor.step).clip(0, cells - 1)
    low = np.minimum(np.floor(place).astype(int), max(cells - 2, 0))
    fraction = place - low
    weights = np.zeros((len(place), cells))
    rows = np.arange(len(place))
    weights[rows, low] = 1 - fraction
    weights[rows, np.minimum(low + 1, cells - 1)] += fraction
    return weights
