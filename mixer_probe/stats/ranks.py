"""Rank correlation with its interval and its null."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked


def rank_correlation(x: Any, y: Any) -> np.ndarray:
    """Spearman's correlation of `x` and `y` along the last axis; NaN where one is constant."""
    a, b = (rankdata(np.asarray(v, dtype=np.float64), axis=-1) for v in (x, y))
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    spread = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / spread)


def rank_interval(rho: Any, n: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a rank correlation of `n` pairs: that of Fisher's z with the variance (1 + rho^2
    / 2) / (n - 3) (Bonett and Wright 2000, Psychometrika 65). NaN for fewer than four pairs."""
    rho = np.asarray(rho, dtype=np.float64)
    if n < 4:
        return np.full(rho.shape, np.nan), np.full(rho.shape, np.nan)
    # At a correlation of 1 itself z is infinite, and the interval reaches as far as that of one
    # that n pairs can hardly tell from it.
    z = np.arctanh(np.clip(rho, -1 + 1 / n**3, 1 - 1 / n**3))
    half = ndtri((1 + level) / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = np.tanh(z - half), np.tanh(z + half)
    return np.where(rho <= -1, -1.0, low), np.where(rho >= 1, 1.0, high)


@checked(MeasureError)
def rank_null(x: np.ndarray, y: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """|rank correlation| [permutation] of `x` [n] with permuted `y` [n]: no relation at all."""
    random = np.random.default_rng(seed)
    ranks = rankdata(y)
    orders = random.permuted(np.tile(np.arange(len(y)), (permutations, 1)), axis=1)
    return np.asarray(np.abs(rank_correlation(np.broadcast_to(x, orders.shape), ranks[orders])))
