"""Proportions of images, and of two answers to the same images as a table of four counts: both
right, one right alone, the other right alone, none right. All that paired fractions can say -
differences, tests, agreement beyond chance - is in these counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtri

from mixer_probe.core.errors import MeasureError

LEVEL = 0.95
# Halvings of [-1, 1]: the last step is below the spacing of floats.
_HALVINGS = 60


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` / `whole`, in the shape of `part`, NaN where the whole is not above 0."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def wilson_interval(right: Any, n: Any, confidence: float = LEVEL) -> tuple[Any, Any]:
    """Interval of a proportion, of which `right` of `n` were seen (Wilson 1927); always inside [0,
    1].

    Numbers give numbers, arrays give arrays. Raises MeasureError unless 0 <= right <= n and n >
    0."""
    hits, of = np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if not ((of > 0) & (hits >= 0) & (hits <= of)).all():
        raise MeasureError(f"{right} of {n} is no proportion")
    low, high = score_interval(hits / of, of, float(ndtri((1 + confidence) / 2)))
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)


def score_interval(fraction: np.ndarray, n: Any, z: Any) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's bounds of a `fraction` of `n` images, which need not be a whole number, at the
    quantile `z`."""
    shrink = 1 + z * z / n
    centre = (fraction + z * z / (2 * n)) / shrink
    half = z * np.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n)) / shrink
    # The bounds are 0 and 1 at the ends; rounding must not push them past the fraction.
    return np.clip(np.minimum(centre - half, fraction), 0, 1), np.clip(
        np.maximum(centre + half, fraction), 0, 1
    )


def paired_counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Counts [..., 4] of images where `a` and `b` (booleans [..., n], broadcast) are both true, `a`
    alone, `b` alone, none."""
    both = np.count_nonzero(a & b, axis=-1)
    only_a, only_b = (np.count_nonzero(x & ~y, axis=-1) for x, y in ((a, b), (b, a)))
    return np.stack(
        [both, only_a, only_b, np.broadcast_shapes(a.shape, b.shape)[-1] - both - only_a - only_b],
        axis=-1,
    )


def difference_interval(counts: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of the fraction of `a` minus that of `b`, from counts [..., 4] (Tango 1998,
    Statistics in Medicine 17).

    It has a width where the two never differ, unlike the bootstrap."""
    z = float(ndtri((1 + level) / 2))
    difference = (counts[..., 1] - counts[..., 2]) / counts.sum(axis=-1)
    low = _crossing(counts, z, np.full(difference.shape, -1.0), difference)
    high = _crossing(counts, -z, difference, np.full(difference.shape, 1.0))
    return low, high


def _crossing(counts: np.ndarray, z: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where the score, which falls with the difference, is z."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = score(counts, middle) > z
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    found: np.ndarray = (low + high) / 2
    return found


def score(counts: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Tango's statistic of counts [..., 4] for a supposed difference [...]: standard normal if it
    is the true one."""
    n, b, c = counts.sum(axis=-1), counts[..., 1], counts[..., 2]
    half = (2 * n - b + c) * difference - b - c
    # The likelihood at this difference is largest where this fraction is right in b alone.
    fraction = (
        np.sqrt(np.maximum(half**2 + 8 * n * c * difference * (1 - difference), 0)) - half
    ) / (4 * n)
    variance = n * (2 * fraction + difference * (1 - difference))
    away = b - c - n * difference
    found: np.ndarray = away / np.sqrt(np.maximum(variance, 1e-300))
    return found


def mcnemar(counts: np.ndarray) -> np.ndarray:
    """Exact two-sided p-value [...] of McNemar's test that `a` and `b` are right equally often,
    from counts [..., 4]."""
    b, c = counts[..., 1], counts[..., 2]
    found: np.ndarray = np.minimum(2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5), 1.0)
    return found
