"""A board of small pictures: one panel in which pictures, maps and texts have their places, which
is faster than a panel each."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mixer_probe.plotting.style import SEQUENTIAL

BOX = "#D55E00"
# The fraction of its cell that a picture fills.
FILL = 0.95


class Board:
    """Places are the upper left corners of cells one unit wide, downwards and to the right;
    `height` is that of a picture."""

    def __init__(
        self, axes: Axes, columns: tuple[float, float], rows: tuple[float, float], height: float
    ) -> None:
        axes.axis("off")
        self.height = height * FILL
        self._axes = axes
        self._limits = {"xlim": columns, "ylim": rows[::-1]}
        self._aspect()

    def _aspect(self) -> None:
        # Every picture sets the limits to its own.
        self._axes.set(**self._limits, aspect="equal")

    def picture(
        self, pixels: np.ndarray, x: float, y: float, box: np.ndarray | None = None
    ) -> None:
        """An RGB picture, with `box` as (top, left, bottom, right) as fractions of its sides."""
        self._image(pixels, x, y)
        if box is not None and not np.array_equal(box, [0, 0, 1, 1]):
            top, left, bottom, right = box * [self.height, FILL, self.height, FILL]
            corner = (x + left, y + top)
            self._axes.add_patch(
                Rectangle(
                    corner, right - left, bottom - top, fill=False, edgecolor=BOX, linewidth=1.3
                )
            )

    def crop(self, pixels: np.ndarray, x: float, y: float) -> None:
        """An RGB picture of another shape, in the middle of its cell."""
        scale = min(FILL / pixels.shape[1], self.height / pixels.shape[0])
        height, width = scale * pixels.shape[0], scale * pixels.shape[1]
        self._image(pixels, x + (FILL - width) / 2, y + (self.height - height) / 2, height, width)

    def map(
        self, values: np.ndarray, pixels: np.ndarray, x: float, y: float, scale: tuple[float, float]
    ) -> None:
        """A map in colours over the picture in grey."""
        self._image(pixels.mean(-1), x, y, cmap="gray", vmin=-60, vmax=300)
        self._image(values, x, y, cmap=SEQUENTIAL, vmin=scale[0], vmax=scale[1], alpha=0.6)

    def _image(
        self,
        pixels: np.ndarray,
        x: float,
        y: float,
        height: float | None = None,
        width: float = FILL,
        **how: Any,
    ) -> None:
        extent = (x, x + width, y + (self.height if height is None else height), y)
        self._axes.imshow(pixels, extent=extent, **how)
        self._aspect()

    def text(self, text: str, x: float, y: float, **how: Any) -> None:
        """A text from the place on to the right and down, unless `how` says otherwise."""
        self._axes.text(x, y, text, **({"va": "top"} | how))
