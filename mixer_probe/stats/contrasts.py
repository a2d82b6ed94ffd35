"""Intervals of sums and differences of means of few independent values each, such as training
seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from mixer_probe.stats.intervals import Estimate


def contrast(
    samples: Sequence[np.ndarray], weights: Sequence[float], level: float = 0.95
) -> Estimate:
    """The weighted sum of the means of independent samples, each [..., n_i] with its own n_i and
    variance, and the bounds of its interval: Student's t with Welch's variance and Satterthwaite's
    degrees of freedom (Welch 1947).

    Weights (1,) give the interval of a mean, (-1, 1) that of the difference of the second from the
    first. NaN where a sample has fewer than two values, or values that are not finite. The values
    of each sample are taken to be normal: of two or three there is no way to tell."""
    value, variance, spread = (np.zeros(np.shape(samples[0])[:-1]) for _ in range(3))
    for sample, weight in zip(samples, weights, strict=True):
        x = np.asarray(sample, dtype=np.float64)
        n = x.shape[-1]
        value = value + weight * x.mean(-1)
        own = weight**2 * (x.var(-1, ddof=1) / n if n > 1 else np.full(x.shape[:-1], np.nan))
        variance, spread = variance + own, spread + own**2 / max(n - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / spread
        half = np.where(variance > 0, t.ppf((1 + level) / 2, freedom) * np.sqrt(variance), np.nan)
    return value, value - half, value + half
