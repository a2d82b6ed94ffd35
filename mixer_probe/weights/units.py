"""Measures of units: maps [unit, h, w] over the patch grid, which are rows or columns of
token-mixing matrices.

Each is a pure function of the maps. Two nulls belong to them. The shuffled null permutes the
weights of every unit over its positions: what is left without spatial structure. The
phase-randomised null keeps the amplitude spectrum of every unit and draws its phases: smooth maps
have few effective dimensions, so opposite pairs arise among them by chance, and against an iid null
every pair of them would be significant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.stats import ttest_1samp

from mixer_probe.core.errors import LayerError
from mixer_probe.core.result import storable
from mixer_probe.weights.spectrum import (
    centroid_of,
    orientation_of,
    power_spectrum,
    random_phase_coordinates,
    spectral_peak,
)


@storable
@dataclass(frozen=True)
class BlockStatistics:
    """Numbers of a whole matrix: floats, or arrays [draw] for a null.

    The means over units of `frequency` (cycles/token), `spread` (px), `coherence` and
    `partner_cosine`; `effective_rank` and `participation_ratio` of the matrix [unit, position]."""

    frequency: float | np.ndarray
    spread: float | np.ndarray
    coherence: float | np.ndarray
    partner_cosine: float | np.ndarray
    effective_rank: float | np.ndarray
    participation_ratio: float | np.ndarray


Seed = int | tuple[int, ...]

STATISTICS = tuple(BlockStatistics.__dataclass_fields__)


@storable
@dataclass(frozen=True)
class UnitSet:
    """One side of one block: `maps` [unit, h, w] and what is measured on them; every other array is
    [unit] unless stated.

    - `norm`: Euclidean norm.
    - `frequency`: power centroid in cycles/token. `orientation` (degrees) and `coherence`: see
      `spectrum.orientation`.
    - `peak_row`, `peak_column`, `peak_frequency`, `phase`, `peak_fraction`: the strongest plane
      wave, see `SpectralPeak`.
    - `centre` [unit, 2] and `spread`: centre of mass (row, column) and spread around it in px, see
      `localisation`.
    - `partner`, `partner_cosine`: the opposite-phase unit, which has the most negative cosine
      similarity. `partner_p`: its p-value under phase randomisation, (1 + surrogates as low) / (1 +
      surrogates).
    - `null_mean`, `null_q05`: mean and 5 % quantile (the 5 % most negative) of `partner_cosine`
      over all units and surrogates.
    - `statistics` of the block and, over draws, of its `shuffled` null; `coherence_p` is the
      p-value of the mean coherence being above that of the same units shuffled (Student's t over
      the differences of units, one-sided)."""

    maps: Annotated[np.ndarray, "unit", "row", "column"]
    norm: Annotated[np.ndarray, "unit"]
    frequency: Annotated[np.ndarray, "unit"]
    orientation: Annotated[np.ndarray, "unit"]
    coherence: Annotated[np.ndarray, "unit"]
    peak_row: Annotated[np.ndarray, "unit"]
    peak_column: Annotated[np.ndarray, "unit"]
    peak_frequency: Annotated[np.ndarray, "unit"]
    phase: Annotated[np.ndarray, "unit"]
    peak_fraction: Annotated[np.ndarray, "unit"]
    centre: Annotated[np.ndarray, "unit", 2]
    spread: Annotated[np.ndarray, "unit"]
    partner: Annotated[np.ndarray, "unit"]
    partner_cosine: Annotated[np.ndarray, "unit"]
    partner_p: Annotated[np.ndarray, "unit"]
    null_mean: float
    null_q05: float
    statistics: BlockStatistics
    shuffled: BlockStatistics
    coherence_p: float


# Cosines of surrogates are taken in float32.
_ROUNDING = 1e-6


def measure_units(
    maps: np.ndarray, patch: tuple[float, float], surrogates: int, shuffles: int, seed: Seed
) -> UnitSet:
    """All measures of the units `maps` [unit, h, w]; `patch` is the height and width of a token in
    px.

    Raises LayerError for a single unit, which has no opposite-phase unit."""
    maps = np.asarray(maps, dtype=np.float64)
    power = power_spectrum(maps)
    direction, coherence = orientation_of(power)
    peak = spectral_peak(maps)
    centre, spread = localisation(maps, patch)
    partner, cosine = partners(maps)
    null = partner_surrogates(maps, surrogates, seed)
    shuffled, shuffled_coherence = shuffled_statistics(maps, patch, shuffles, seed)
    excess = coherence - shuffled_coherence
    excess = excess[np.isfinite(excess)]
    tested = len(excess) > 1 and excess.std() > 0
    return UnitSet(
        maps=maps,
        norm=np.sqrt((maps**2).sum((1, 2))),
        frequency=centroid_of(power),
        orientation=direction,
        coherence=coherence,
        peak_row=peak.rows,
        peak_column=peak.columns,
        peak_frequency=peak.frequency,
        phase=peak.phase,
        peak_fraction=peak.fraction,
        centre=centre,
        spread=spread,
        partner=partner,
        partner_cosine=cosine,
        partner_p=(1 + (null <= cosine + _ROUNDING).sum(0)) / (1 + surrogates),
        null_mean=float(null.mean()),
        null_q05=float(np.quantile(null, 0.05)),
        statistics=block_statistics(maps, patch)[0],
        shuffled=shuffled,
        coherence_p=float(ttest_1samp(excess, 0.0, alternative="greater").pvalue)
        if tested
        else float("nan"),
    )


def block_statistics(
    maps: np.ndarray, patch: tuple[float, float]
) -> tuple[BlockStatistics, np.ndarray]:
    """The statistics of a matrix of units [unit, h, w], and the coherence of every unit [unit].

    Means leave out units for which a measure is not defined."""
    power = power_spectrum(maps)
    singular = singular_values(maps.reshape(len(maps), -1))
    coherence = orientation_of(power)[1]
    statistics = BlockStatistics(
        frequency=defined_mean(centroid_of(power)),
        spread=defined_mean(localisation(maps, patch)[1]),
        coherence=defined_mean(coherence),
        partner_cosine=defined_mean(partners(maps)[1]),
        effective_rank=effective_rank(singular),
        participation_ratio=participation_ratio(singular),
    )
    return statistics, coherence


def defined_mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def shuffled_statistics(
    maps: np.ndarray, patch: tuple[float, float], shuffles: int, seed: Seed
) -> tuple[BlockStatistics, np.ndarray]:
    """`block_statistics` of `shuffles` copies with the weights of every unit in random positions:
    statistics as arrays [draw], and the mean coherence of every unit [unit] over the copies."""
    rng = np.random.default_rng(seed)
    rows = np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)
    drawn = [
        block_statistics(rng.permuted(rows, axis=1).reshape(maps.shape), patch)
        for _ in range(shuffles)
    ]
    statistics = BlockStatistics(
        *(np.array([getattr(one, name) for one, _ in drawn]) for name in STATISTICS)
    )
    return statistics, np.mean([coherence for _, coherence in drawn], axis=0)


def localisation(maps: np.ndarray, patch: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(centre [unit, 2], spread [unit]) in px of maps [unit, h, w] with tokens of `patch` (height,
    width) px.

    With w^2 / sum w^2 as a density over the token centres, the centre is its mean (row, column)
    from the upper left corner of the picture and the spread the root of its mean squared distance
    from there: 0 for a unit that reads one token, and for white noise about that of the whole grid,
    `uniform_spread`. NaN for a unit of zeros."""
    density = np.asarray(maps, dtype=np.float64) ** 2
    total = density.sum((1, 2))
    density /= np.where(total > 0, total, np.nan)[:, None, None]
    y, x = ((np.arange(n) + 0.5) * side for n, side in zip(density.shape[1:], patch, strict=True))
    over_rows, over_columns = density.sum(2), density.sum(1)
    centre = np.stack([over_rows @ y, over_columns @ x], axis=1)
    variance = (over_rows * (y - centre[:, :1]) ** 2).sum(1) + (
        over_columns * (x - centre[:, 1:]) ** 2
    ).sum(1)
    return centre, np.sqrt(variance)


def uniform_spread(grid: tuple[int, int], patch: tuple[float, float]) -> float:
    """The spread in px of a unit of equal |weight| everywhere: sqrt(sum over both axes of patch^2
    (n^2 - 1) / 12)."""
    return float(
        np.sqrt(sum(side**2 * (n**2 - 1) / 12 for n, side in zip(grid, patch, strict=True)))
    )


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values of a matrix, falling, from its smaller Gram matrix: values below about 1e-7
    of the largest are 0.

    All are NaN if the matrix is not finite."""
    matrix = np.asarray(matrix, dtype=np.float64)
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    squares: np.ndarray = np.linalg.eigvalsh(gram)[::-1]
    noise = squares.max(initial=0.0) * len(gram) * np.finfo(np.float64).eps
    values: np.ndarray = np.sqrt(np.where(squares > noise, squares, 0.0))
    return values


def effective_rank(singular: np.ndarray) -> float:
    """exp(entropy of s / sum s) of singular values s (Roy and Vetterli 2007): r for r equal ones.
    NaN for a matrix of zeros."""
    if not singular.sum() > 0:
        return float("nan")
    p = singular[singular > 0] / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(singular: np.ndarray) -> float:
    """(sum s^2)^2 / sum s^4 of singular values s: r for r equal ones, about n p / (n + p + 1) for
    iid Gaussian n x p.

    NaN for a matrix of zeros."""
    squares = singular**2
    return float(squares.sum() ** 2 / (squares**2).sum()) if squares.sum() > 0 else float("nan")


def partners(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The opposite-phase unit of each map [unit, h, w], that of most negative cosine similarity,
    and that cosine.

    A unit of zeros has cosine 0 with all. Raises LayerError for a single unit."""
    if len(maps) < 2:
        raise LayerError("an opposite-phase unit needs at least two units")
    cosine = cosines(maps)
    np.fill_diagonal(cosine, np.inf)
    found = cosine.argmin(1)
    return found, cosine[np.arange(len(maps)), found]


def cosines(maps: np.ndarray) -> np.ndarray:
    """Cosine similarity [unit, unit] of maps [unit, h, w]."""
    unit = unit_rows(maps.reshape(len(maps), -1))
    cosine: np.ndarray = unit @ unit.T
    return cosine


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norms; a row of zeros stays one."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def matching_null(table: np.ndarray) -> tuple[float, float]:
    """(mean, standard deviation) of mean_i table[i, p(i)] over all permutations p, for a table [n,
    n].

    In closed form (Hoeffding 1951): the mean of the table, and sqrt(sum d^2 / (n - 1)) / n with d
    the doubly centred table.
    """
    centred = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float(table.mean()), float(np.sqrt((centred**2).sum() / (len(table) - 1)) / len(table))


def partner_surrogates(maps: np.ndarray, surrogates: int, seed: Seed) -> np.ndarray:
    """Cosines with the opposite-phase unit [surrogate, unit] of copies of the maps [unit, h, w]
    with random phases.

    Surrogates are drawn as coordinates in the orthonormal Fourier basis: cosines are the same
    there, and no transform is needed. Cosines are taken in float32.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((surrogates, len(maps)), np.float32)
    # Random phases change no norm.
    unit_maps = unit_rows(np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)).reshape(
        np.shape(maps)
    )
    for one, unit in zip(drawn, random_phase_coordinates(unit_maps, surrogates, rng)):
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, np.inf)
        # The cosines are symmetric, and minima down the rows are faster.
        cosine.min(0, out=one)
    return drawn.astype(np.float64)


def paired_order(maps: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Units [unit] in opposite-phase pairs, low frequency first, the lower of a pair before the
    other; an odd unit comes last.

    The two units of lowest cosine are the first pair, the two of lowest cosine among the rest the
    next, and so on, so that mutual opposite-phase units stand together. Pairs are sorted by their
    mean frequency, those with a constant unit last."""
    cosine = cosines(maps)
    np.fill_diagonal(cosine, np.inf)
    free = np.arange(len(cosine))
    pairs = np.empty((0, 2), dtype=np.intp)
    while len(free) > 1:
        # All units that are each other's lowest become pairs at once: the same pairs as one at a
        # time.
        best = cosine[np.ix_(free, free)].argmin(1)
        mutual = (best[best] == np.arange(len(free))) & (np.arange(len(free)) < best)
        pairs = np.concatenate([pairs, np.stack([free[mutual], free[best[mutual]]], axis=1)])
        free = np.setdiff1d(free, pairs)
    ordered = np.take_along_axis(pairs, np.argsort(frequency[pairs], axis=1, kind="stable"), axis=1)
    by_frequency = np.argsort(frequency[ordered].mean(1), kind="stable")  # NaN sorts last
    order: np.ndarray = np.concatenate([ordered[by_frequency].ravel(), free])
    return order
