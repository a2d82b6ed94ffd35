"""Positions of layers in pixels: where they lie, how far apart, and which of them a cell of a
common grid holds.

Grids of any number of rows and columns cover the same image, so that layers and networks of
different resolutions meet on a common grid of cells."""

from __future__ import annotations

import numpy as np

Grid = tuple[int, int]


def common_grid(size: Grid) -> Grid:
    """The cells (rows, columns) on which networks meet that take images of `size` px: of 32 px,
    where that makes at least 4 and at most 8 along a side, as 7 x 7 for 224 px."""
    rows, columns = (min(max(side // 32, 4), 7 if side % 7 == 0 else 8) for side in size)
    return rows, columns


def centres(grid: Grid, size: Grid) -> np.ndarray:
    """Centres [position, 2] of the positions of a grid, in pixels down and to the right."""
    down, right = ((np.arange(n) + 0.5) * side / n for n, side in zip(grid, size, strict=True))
    found: np.ndarray = np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2)
    return found


def overlap(grid: Grid, other: Grid) -> np.ndarray:
    """The fraction of each position of `grid` that lies in each position of `other`; rows sum to 1.
    Both cover the image."""

    def along(n: int, m: int) -> np.ndarray:
        own, cells = np.arange(n + 1) / n, np.arange(m + 1) / m
        shared = np.minimum(own[1:, None], cells[1:]) - np.maximum(own[:-1, None], cells[:-1])
        fractions: np.ndarray = np.maximum(shared, 0) * n
        return fractions

    down, right = (along(n, m) for n, m in zip(grid, other, strict=True))
    shared = np.einsum("ik,jl->ijkl", down, right).reshape(grid[0] * grid[1], -1)
    fractions: np.ndarray = shared / shared.sum(1, keepdims=True)
    return fractions


def sampled_positions(grid: Grid, cells: Grid, rng: np.random.Generator) -> np.ndarray:
    """Indices of one position of `grid` per cell, drawn among those whose centre the cell holds;
    all positions where there are no more than cells."""
    if grid[0] * grid[1] <= cells[0] * cells[1]:
        return np.arange(grid[0] * grid[1])
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    cell = (row * 2 + 1) * cells[0] // (2 * grid[0]) * cells[1]
    cell += (column * 2 + 1) * cells[1] // (2 * grid[1])
    return np.array([rng.choice(np.flatnonzero(cell == k)) for k in np.unique(cell)])


def rows_of_cells(grid: Grid, cells: Grid, rows: np.ndarray) -> np.ndarray:
    """The mean [cell, row] over the sampled positions `rows` of a grid that are in each cell, by
    the area that they share with it; where a cell holds none, of the nearest ones."""
    weight = overlap(grid, cells)[rows].T
    empty = weight.sum(1) == 0
    if empty.any():
        unit = (1, 1)
        own, other = centres(cells, unit)[empty], centres(grid, unit)[rows]
        distance = np.hypot(*np.moveaxis(own[:, None] - other, -1, 0))
        weight[empty] = distance < distance.min(1, keepdims=True) + 1e-9
    mean: np.ndarray = weight / weight.sum(1, keepdims=True)
    return mean
