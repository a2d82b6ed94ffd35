"""What figures of weights share: maps as tiles on one canvas, and the choice of layers that have a
panel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.weights.offsets import offset_pairs


@dataclass(frozen=True)
class Tiling:
    """Where tiles stand: `count` maps of `size` in `columns`, with a `gap` between them that is
    narrower inside `pairs`."""

    count: int
    size: tuple[int, int]
    columns: int
    pairs: bool = False
    gap: int = 3

    @property
    def zoom(self) -> int:
        """How often a cell is repeated: small maps are enlarged, so that gaps stay narrow beside
        them."""
        return max(1, 8 // min(self.size))

    def corner(self, k: int) -> tuple[int, int]:
        """Row and column of the upper left corner of tile k."""
        row, column = divmod(k, self.columns)
        height, width = (self.zoom * n for n in self.size)
        narrow = (column + 1) // 2 if self.pairs else 0
        return row * (height + self.gap), column * (width + self.gap) - 2 * narrow

    def draw(self, maps: np.ndarray, background: float = np.nan) -> np.ndarray:
        """Maps [count, h, w] or colour images [count, h, w, 3] on one canvas [H, W] or [H, W,
        3]."""
        maps = maps.repeat(self.zoom, 1).repeat(self.zoom, 2)
        height, width = maps.shape[1:3]
        corners = [self.corner(k) for k in range(self.count)]
        shape = (max(top for top, _ in corners) + height, max(left for _, left in corners) + width)
        canvas = np.full((*shape, *maps.shape[3:]), background)
        for (top, left), one in zip(corners, maps, strict=True):
            canvas[top : top + height, left : left + width] = one
        return canvas


def tile(maps: np.ndarray, columns: int, background: float) -> np.ndarray:
    """Maps [unit, h, w] or colour images [unit, h, w, 3] on one canvas with gaps of one pixel."""
    return Tiling(len(maps), (maps.shape[1], maps.shape[2]), columns, gap=1).draw(maps, background)


def canvas_axes(shape: tuple[int, ...]) -> tuple[Figure, Axes]:
    """A figure of one panel for a canvas [H, W, ...], with room for title, axis label and colour
    bar."""
    height = min(max(9.0 * shape[0] / shape[1], 0.6), 12.0)
    figure = Figure(figsize=(10.0, height + 0.85))
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure, axes


def scaled(maps: np.ndarray, shared: bool) -> np.ndarray:
    """Maps [unit, h, w] divided by the largest |value| of each, or of all if `shared`; zeros stay
    zero."""
    largest = np.abs(maps).max() if shared else np.abs(maps).max((1, 2), keepdims=True)
    values: np.ndarray = np.divide(
        maps, largest, out=np.zeros_like(maps), where=np.asarray(largest > 0)
    )
    return values


def largest_offset(values: np.ndarray, grid: tuple[int, int] | None) -> float:
    """The largest |value| in offset space [oh, ow], for S x S kernels among offsets that a quarter
    of the positions have.

    The farthest offsets have a single pair of positions: their noise would set the colours of
    everything else."""
    magnitude = np.abs(values)
    if grid is not None:
        magnitude = magnitude[offset_pairs(grid) >= grid[0] * grid[1] / 4]
    return float(magnitude.max())


def first_middle_last(n: int) -> list[int]:
    """The first, the middle and the last of n layers."""
    return sorted({0, n // 2, n - 1})


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` of n layers, from the first to the last."""
    return sorted({round(float(i)) for i in np.linspace(0, n - 1, min(most, n))})
