"""p-values and thresholds from draws of a null, and the null of the largest of a family."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import t

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked

LEVEL = 0.95


def permutation_p(values: Any, draws: Any, direction: int = 1) -> np.ndarray:
    """(1 + k) / (1 + m) for `values` [...], of which k of the m `draws` [m, ...] are as large or
    larger; as small or smaller for `direction` -1 (Phipson and Smyth 2010): never 0, and below p
    with probability at most p under the null.

    Draws that are NaN count as larger; a value that is NaN has no p-value (NaN)."""
    x, null = (
        np.asarray(values, dtype=np.float64) * direction,
        np.asarray(draws, dtype=np.float64) * direction,
    )
    reached = (~(null < x)).sum(0)
    return np.where(np.isnan(x), np.nan, (1 + reached) / (1 + len(null)))


def max_null(draws: Any, axis: int | tuple[int, ...], direction: int = 1) -> np.ndarray:
    """The largest of a family under every draw, [m] from `draws` [m, ...] over the axes of the
    family (without the first): what a value that was picked as the largest of the family has to be
    compared with. The smallest for `direction` -1.

    Members that are NaN are left out; NaN where there is no other."""
    values = np.asarray(draws, dtype=np.float64)
    largest = np.where(np.isnan(values), -np.inf, direction * values).max(axis=axis)
    return np.where(np.isinf(largest), np.nan, direction * largest)


def max_p(values: Any, draws: Any, direction: int = 1) -> np.ndarray:
    """p-values of a whole family `values` [...] from `draws` [m, ...], adjusted for the choice
    among its members: each against the largest of the family under every draw (Westfall and Young
    1993, single step). Members need one scale."""
    null = np.asarray(draws)
    largest = max_null(null, tuple(range(1, null.ndim)), direction)
    return permutation_p(values, largest.reshape(-1, *[1] * (null.ndim - 1)), direction)


def upper_quantile(values: np.ndarray, level: float = LEVEL, direction: int = 1) -> np.ndarray:
    """The order statistic over axis 0 that a further exchangeable value exceeds with at most 1 -
    level; falls below for `direction` -1."""
    rank = math.ceil(level * (len(values) + 1))
    quantile: np.ndarray = np.sort(direction * values, axis=0)[rank - 1] * direction
    return quantile


def prediction_limit(drawn: np.ndarray, level: float = 0.05) -> float:
    """What one more draw exceeds with probability `level`, from `drawn` values [draw] of a normal
    law (Student's t); infinite for a single draw."""
    n = len(drawn)
    if n < 2:
        return math.inf
    return float(drawn.mean() + t.ppf(1 - level, n - 1) * drawn.std(ddof=1) * math.sqrt(1 + 1 / n))


@checked(MeasureError)
def check_permutations(permutations: int) -> None:
    """Raise MeasureError for a count that allows no 95 % quantile; 0 means no null."""
    fewest = math.ceil(LEVEL / (1 - LEVEL) - 1e-9)
    if permutations != 0 and permutations < fewest:
        raise MeasureError(
            f"{permutations} permutations give no 95 % quantile: take {fewest} or more, or 0"
        )
