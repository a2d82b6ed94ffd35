"""Maps over pixels and over patches: pooling, rank correlation, structural similarity."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from mixer_probe.core.errors import MeasureError


def edges(size: int, cells: int) -> np.ndarray:
    """First pixel of each of `cells` cells along `size` pixels, as even as can be.

    Raises MeasureError for more cells than pixels."""
    if not 1 <= cells <= size:
        raise MeasureError(f"{cells} cells per side do not fit {size} pixels; give 1 to {size}")
    return np.ceil(np.arange(cells) * size / cells).astype(int)


def pool(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Sums of maps [..., H, W] over the cells of a grid: [..., rows, columns] in float64."""
    rows, columns = (edges(size, cells) for size, cells in zip(maps.shape[-2:], grid, strict=True))
    return np.add.reduceat(
        np.add.reduceat(maps.astype(np.float64), rows, axis=-2), columns, axis=-1
    )


def cells(size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Which cell of the grid (row by row) each pixel is in: [H, W]."""
    row, column = (
        np.searchsorted(edges(n, k), np.arange(n), side="right") - 1
        for n, k in zip(size, grid, strict=True)
    )
    return row[:, None] * grid[1] + column[None, :]


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis (ties share their mean rank), NaN where one side is
    constant."""
    x, y = (centred_ranks(v) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return result


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis less their mean."""
    ranks = rankdata(values, axis=-1)
    centred: np.ndarray = ranks - ranks.mean(-1, keepdims=True)
    return centred


def rank_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlations [image of a, image of b] of rows [image, patch]."""
    x, y = (centred_ranks(v) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    table: np.ndarray = x @ y.T
    return table


def ssim(a: np.ndarray, b: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity of magnitudes [..., H, W], each scaled to a largest value of 1 (Wang et
    al. 2004, Gaussian window of 1.5 px, K1 0.01, K2 0.03): one value per map, 1 for equal ones, NaN
    where a map is zero everywhere."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (
            np.abs(v) / np.abs(v).max((-2, -1), keepdims=True)
            for v in (a.astype(np.float64), b.astype(np.float64))
        )
    mx, my = _blur(x, sigma), _blur(y, sigma)
    vx, vy, c = (
        _blur(x * x, sigma) - mx**2,
        _blur(y * y, sigma) - my**2,
        _blur(x * y, sigma) - mx * my,
    )
    local = (2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    result: np.ndarray = local.mean((-2, -1))
    return result


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    blurred: np.ndarray = gaussian_filter(x, sigma, axes=(-2, -1))
    return blurred
