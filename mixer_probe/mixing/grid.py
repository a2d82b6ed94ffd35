"""Layers whose positions form a grid, and single positions of it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import shown
from mixer_probe.models.layer import Layer

Position = tuple[int, int] | int | None


def with_grid(layers: Sequence[Layer], what: str) -> list[tuple[Layer, tuple[int, int]]]:
    """Each layer with its grid. Raises MeasureError for one that has none, as `what` needs."""
    found = []
    for layer in layers:
        if layer.grid is None:
            why = (
                "the positions of this layer form no known grid"
                if layer.positions
                else "this layer is pooled and has no positions"
            )
            raise MeasureError(
                f"{what} needs layers with a grid of positions, and '{layer.name}' has none: "
                f"{why}; give layers such as 'blocks' or 'stem'"
            )
        found.append((layer, layer.grid))
    return found


def place_in(layer: Layer, grid: tuple[int, int], position: Position) -> tuple[int, int]:
    """(row, column) of a position: the central one (row h // 2, column w // 2) for None, of an
    index, or of (row, column).

    Raises MeasureError for anything else, and for a position outside the grid."""
    height, width = grid
    if position is None:
        return height // 2, width // 2
    try:
        row, column = position if isinstance(position, Sequence) else divmod(index(position), width)
        place = index(row), index(column)
    except (TypeError, ValueError):
        raise MeasureError(
            "position is (row, column), the index of a position or None for the central one, not "
            f"{shown(position)}"
        ) from None
    if not (0 <= place[0] < height and 0 <= place[1] < width):
        raise MeasureError(
            f"position {shown(position)} is outside the {height}×{width} positions of "
            f"'{layer.name}'; give a row below {height} and a column below {width}, or an index "
            f"below {height * width}"
        )
    return place
