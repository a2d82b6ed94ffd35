"""Offset space: what an S x S spatial kernel does, by how far and in which direction it reads.

K[i, j] says how position i of an h x w grid reads from position j. Its offset is (row of j - row of
i, column of j - column of i); offsets fill an array [2h - 1, 2w - 1] with offset zero in the
middle. Between the positions of the grid an offset (a, b) has (h - |a|)(w - |b|) pairs. A
convolution kernel [kh, kw] is in offset space already: its entry [y, x] reads from offset (y - (kh
- 1)/2, x - (kw - 1)/2) of its input.

The matrices that depend on the offset alone are the BTTB matrices (block Toeplitz with Toeplitz
blocks): what a zero-padded convolution that all positions share can do. The nearest one to K in the
Frobenius norm has the mean of K over the pairs of every offset, so the fraction of energy that is
translation-structured is sum over offsets of pairs * mean^2, divided by |K|_F^2. It is 1 for a
zero-padded shared convolution, and for iid entries of mean zero its expectation is (number of
offsets) / (number of pairs), which is (2g - 1)^2 / g^4 on a g x g grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Grid = tuple[int, int]
Pixels = tuple[float, float]


def offset_pairs(grid: Grid) -> np.ndarray:
    """How many pairs of positions of an h x w grid have each offset: [2h - 1, 2w - 1], summing to
    (hw)^2."""
    rows, columns = (size - np.abs(np.arange(1.0 - size, size)) for size in grid)
    pairs: np.ndarray = rows[:, None] * columns
    return pairs


def offset_sums(kernels: np.ndarray, grid: Grid) -> np.ndarray:
    """Sums over all pairs of the same offset: [..., S, S] to [..., 2h - 1, 2w - 1]."""
    height, width = 2 * grid[0] - 1, 2 * grid[1] - 1
    index = _offset_index(grid)
    flat = np.asarray(kernels, dtype=np.float64).reshape(-1, index.size)
    sums = np.stack([np.bincount(index, weights=one, minlength=height * width) for one in flat])
    folded: np.ndarray = sums.reshape(*np.shape(kernels)[:-2], height, width)
    return folded


def offset_mean(kernels: np.ndarray, grid: Grid) -> np.ndarray:
    """The average kernel around a position: the mean over the available pairs of each offset,
    without padding.

    [..., S, S] to [..., 2h - 1, 2w - 1]. Far offsets have few pairs (the corners one), so they are
    the noisiest."""
    mean: np.ndarray = offset_sums(kernels, grid) / offset_pairs(grid)
    return mean


def offset_rms(kernels: np.ndarray, grid: Grid) -> np.ndarray:
    """The root mean square over the available pairs of each offset, which signs cannot cancel;
    shapes as `offset_mean`."""
    mean: np.ndarray = np.sqrt(offset_mean(np.asarray(kernels, dtype=np.float64) ** 2, grid))
    return mean


def product_offset_sums(write: np.ndarray, read: np.ndarray, grid: Grid) -> np.ndarray:
    """`offset_sums` of the outer products K_u[i, j] = write[u, i] read[u, j], from [unit, S] and
    [unit, S], by FFT.

    Returns [unit, 2h - 1, 2w - 1] without making a matrix per unit: sums over equal offsets are a
    cross-correlation."""
    shape = (2 * grid[0] - 1, 2 * grid[1] - 1)
    to, source = (np.fft.rfft2(m.reshape(-1, *grid), shape) for m in (write, read))
    sums: np.ndarray = np.fft.irfft2(np.conj(to) * source, shape)
    return np.fft.fftshift(sums, axes=(-2, -1))


@lru_cache(maxsize=32)
def _offset_index(grid: Grid) -> np.ndarray:
    """The flat index in offset space of every pair (i, j), in the order of a flattened S x S
    matrix."""
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    down = rows[None, :] - rows[:, None] + grid[0] - 1
    right = columns[None, :] - columns[:, None] + grid[1] - 1
    index: np.ndarray = (down * (2 * grid[1] - 1) + right).ravel()
    index.setflags(write=False)
    return index


def bttb_fraction(kernel: np.ndarray, grid: Grid) -> float:
    """The fraction of the energy of K [S, S] in its projection on BTTB matrices, 0 to 1; NaN for a
    kernel of zeros."""
    total = float((np.asarray(kernel, dtype=np.float64) ** 2).sum())
    structured = float((offset_sums(kernel, grid) ** 2 / offset_pairs(grid)).sum())
    return structured / total if total > 0 else float("nan")


def bttb_fraction_centred(kernel: np.ndarray, grid: Grid) -> float:
    """`bttb_fraction` of K minus the mean of all its entries; NaN for a constant kernel.

    The rows of an attention map sum to 1, so its mean is a large part of it, and a constant kernel
    is a BTTB matrix: an attention that has learned nothing looks like a convolution unless the mean
    is taken away."""
    centred = np.asarray(kernel, dtype=np.float64) - np.mean(kernel, dtype=np.float64)
    # Rounding leaves a constant kernel with entries of some 1e-17 of its size.
    return (
        bttb_fraction(centred, grid)
        if np.abs(centred).max() > 1e-12 * np.abs(kernel).max()
        else float("nan")
    )


def bttb_fraction_centred_iid(grid: Grid) -> float:
    """The expected `bttb_fraction_centred` of iid entries: (offsets - 1) / (pairs - 1), NaN for a
    grid of one position.

    Taking the mean away removes the same one dimension from the BTTB matrices and from all
    matrices."""
    height, width = grid
    pairs = (height * width) ** 2
    return ((2 * height - 1) * (2 * width - 1) - 1) / (pairs - 1) if pairs > 1 else float("nan")


def translation_fraction(kernel: np.ndarray, grid: Grid) -> tuple[float, float]:
    """The translation fraction of K [S, S], and its expectation for iid entries: the fraction of
    the energy of K, less the mean of its entries, that depends on the offset alone
    (`bttb_fraction_centred`)."""
    return bttb_fraction_centred(kernel, grid), bttb_fraction_centred_iid(grid)


# Entries of kernels that a null may go through; larger ones have none.
_MOST_ENTRIES = 400_000_000


def translation_p(kernel: np.ndarray, grid: Grid, draws: int, seed: int = 0) -> float:
    """p-value of the translation fraction of K [S, S] among `draws` copies whose rows, and whose
    columns, are permuted over the positions: +1 in both (Phipson and Smyth 2010).

    Copies keep the entries of K, its rank and its singular values. NaN for a constant kernel and
    one too large for the null."""
    centred = np.asarray(kernel, dtype=np.float64) - np.mean(kernel, dtype=np.float64)
    if np.isnan(translation_fraction(kernel, grid)[0]) or centred.size * draws > _MOST_ENTRIES:
        return float("nan")
    index, pairs = _offset_index(grid), offset_pairs(grid).ravel()
    rng = np.random.default_rng(seed)

    def structured(entries: np.ndarray) -> float:
        return float((np.bincount(index, entries.ravel(), len(pairs)) ** 2 / pairs).sum())

    own, positions = structured(centred) * (1 - 1e-12), len(centred)
    above = sum(
        structured(centred[rng.permutation(positions)][:, rng.permutation(positions)]) >= own
        for _ in range(draws)
    )
    return (1 + above) / (1 + draws)


def offset_distance(shape: tuple[int, int], step: Pixels) -> np.ndarray:
    """Distance in pixels of every entry of an offset array of this shape from its middle; `step` is
    pixels per position."""
    rows, columns = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, step, strict=True))
    distance: np.ndarray = np.hypot(rows[:, None], columns[None, :])
    return distance


def pair_distance(grid: Grid, step: Pixels) -> np.ndarray:
    """Distance in pixels between every two positions of the grid [S, S]."""
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    distance: np.ndarray = np.hypot(
        (rows[:, None] - rows) * step[0], (columns[:, None] - columns) * step[1]
    )
    return distance


def uniform_distance(grid: Grid, step: Pixels) -> float:
    """Mean distance in pixels of a kernel that reads from every position alike (116.492 px for 14 x
    14 patches of 16 px)."""
    pairs = offset_pairs(grid)
    return float((pairs * offset_distance(pairs.shape, step)).sum() / pairs.sum())


def matrix_spread(kernel: np.ndarray, grid: Grid, step: Pixels) -> tuple[float, float]:
    """(mean distance in pixels, self mass) of K [S, S]; see `matrix_spread_sd` for how far chance
    moves the distance.

    P_ij = K_ij^2 / sum_j K_ij^2 is where position i reads; the distance is sum_j P_ij |pos_i -
    pos_j| and the self mass P_ii, both averaged over the positions that read anything. NaN for a
    kernel of zeros."""
    energy = np.asarray(kernel, dtype=np.float64) ** 2
    # Squares of tiny weights (a fresh gMLP's are 1e-6) stay far above the smallest double; only
    # true zeros are left out.
    total = energy.sum(1, keepdims=True)
    reads = total[:, 0] > 0
    if not reads.any():
        return float("nan"), float("nan")
    distance = (energy[reads] / total[reads] * pair_distance(grid, step)[reads]).sum(1)
    return float(distance.mean()), float(
        np.diag(energy)[reads].dot(1 / total[reads, 0]) / reads.sum()
    )


def matrix_spread_sd(kernel: np.ndarray, grid: Grid, step: Pixels) -> float:
    """Standard deviation in pixels of the mean distance of `matrix_spread` over all permutations of
    the rows and columns of K: how far the distance is from that of another kernel of the same
    entries by chance.

    In closed form: with P and the distances D split into rows a, columns b and interaction c, the
    variance of sum P D over two independent permutations is S^2 (|a_P|^2 |a_D|^2 + |b_P|^2 |b_D|^2)
    / (S - 1) + |c_P|^2 |c_D|^2 / (S - 1)^2 (as Hoeffding 1951 for one permutation). NaN for a
    kernel of zeros, or of one position."""
    energy = np.asarray(kernel, dtype=np.float64) ** 2
    total, size = energy.sum(1, keepdims=True), len(energy)
    if not total.any() or size < 2:
        return float("nan")
    P = np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)
    parts = []
    for table in (P, pair_distance(grid, step)):
        rows, columns, mean = (
            table.mean(1, keepdims=True),
            table.mean(0, keepdims=True),
            table.mean(),
        )
        parts.append(
            [
                float((part**2).sum())
                for part in (rows - mean, columns - mean, table - rows - columns + mean)
            ]
        )
    (rows_p, columns_p, rest_p), (rows_d, columns_d, rest_d) = parts
    variance = (
        size**2 * (rows_p * rows_d + columns_p * columns_d) / (size - 1)
        + rest_p * rest_d / (size - 1) ** 2
    )
    return float(np.sqrt(variance)) / int((total > 0).sum())


def shared_spread_sd(energy: np.ndarray, step: Pixels, kernels: int) -> float:
    """Standard deviation in pixels of the mean distance of `shared_spread`, were the taps of the
    `kernels` iid normal: the energy of a tap, a sum of so many squares, has relative variance 2 /
    kernels."""
    total = float(energy.sum())
    if total == 0:
        return float("nan")
    distance, fraction = offset_distance((energy.shape[0], energy.shape[1]), step), energy / total
    return float(
        np.sqrt(((fraction * (distance - (fraction * distance).sum())) ** 2).sum() * 2 / kernels)
    )


def shared_spread(energy: np.ndarray, step: Pixels) -> tuple[float, float]:
    """(mean distance in pixels, self mass) of a kernel that all positions share, from its energy by
    offset [kh, kw].

    The kernel is seen whole, as from the middle of a large image. NaN for a kernel of zeros."""
    total = float(energy.sum())
    if total == 0:
        return float("nan"), float("nan")
    distance = offset_distance((energy.shape[0], energy.shape[1]), step)
    return float((energy * distance).sum() / total), float(energy[distance == 0].sum() / total)
