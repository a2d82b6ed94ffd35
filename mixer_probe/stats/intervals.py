"""Intervals of means, of smooth functions of means, of means over two crossed factors, and of
medians."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom, t

Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]
Bounds = tuple[np.ndarray, np.ndarray]
Limits = tuple[Any, Any] | None
# With fewer values the interval of a skewed mean covers less than it says: 92 % at eight, 88 % at
# four.
FEWEST = 12


def mean_interval(
    values: Any, axis: int = -1, level: float = 0.95, limits: Limits = None
) -> Estimate:
    """Mean of `values` along `axis` and the bounds of its interval: Student's, with the skewness
    taken out.

    With the standard deviation s and the skewness g of n values, (mean - mu) / s is transformed by
    Hall's cubic x + g x^2 / 3 + g^2 x^3 / 27 + g / 6n, which has no skewness to second order (Hall
    1992, Journal of the Royal Statistical Society B 54), and the quantiles of Student with n - 1
    degrees of freedom are transformed back. Without skewness that is Student's interval. Values
    that are NaN or infinite are left out; of fewer than two there is no interval (NaN).

    `limits` are the least and the largest that a value can be, and bound the interval. Values that
    are all the same say nothing of their spread, so that they have no interval without limits; with
    limits as many as Wilson's interval allows of what n images never showed may lie at either
    limit. Shares of images that are right or wrong belong to `wilson_interval`."""
    x = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    there = np.isfinite(x)
    n = there.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, x, 0).sum(-1) / n
        away = np.where(there, x - mean[..., None], 0)
        spread = np.sqrt(np.square(away).sum(-1) / (n - 1))
        # What rounding leaves of equal values is no spread.
        spread = np.where(
            (n > 1) & (spread > 1e-14 * np.abs(np.where(there, x, 0)).max(-1, initial=0)),
            spread,
            np.nan,
        )
        skew = (away**3).sum(-1) / n / spread**3
        reach = t.ppf((1 + level) / 2, np.maximum(n - 1, 1)) / np.sqrt(n)
        low, high = (mean - spread * _untransformed(side, skew, n) for side in (reach, -reach))
    return (mean, *_limited(mean, low, high, n, level, limits))


def _limited(mean: Any, low: Any, high: Any, n: Any, level: float, limits: Limits) -> Bounds:
    """The bounds within the limits, and where there are none of two values or more, how far what
    was never seen could move the mean."""
    if limits is None:
        return low, high
    unseen = 1 / (1 + n / ndtri((1 + level) / 2) ** 2)
    return tuple(
        clip(np.where(np.isnan(side) & (n > 1), mean + (limit - mean) * unseen, side), limit)
        for side, limit, clip in zip((low, high), limits, (np.maximum, np.minimum), strict=True)
    )


def _untransformed(y: np.ndarray, skew: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The x whose cubic is `y`."""
    third = skew / 3
    shifted = y - skew / (6 * n)
    flat = np.abs(third) < 1e-8
    found: np.ndarray = np.where(
        flat, shifted, (np.cbrt(1 + 3 * third * shifted) - 1) / np.where(flat, 1, third)
    )
    return found


def delta_interval(
    value: Any, influence: Any, axis: int = -1, level: float = 0.95, limits: Limits = None
) -> Bounds:
    """Bounds of a smooth function of means, from the influence of every image on it along `axis`.

    The influence is the derivative of the function at the means times the image's distance from
    them, so that the function of other images differs by the mean influence (the delta method): the
    interval is that of a mean. `limits` as there."""
    mean, low, high = mean_interval(influence, axis, level)
    n = np.isfinite(influence).sum(axis)
    return _limited(
        value, np.asarray(value + low - mean), np.asarray(value + high - mean), n, level, limits
    )


def crossed_interval(values: Any, level: float = 0.95, limits: Limits = None) -> Estimate:
    """Mean of `values` [..., S, n] and the bounds of its interval for other draws and other images:
    rows are S draws (of training images, of control tasks) and columns n images, crossed random
    effects. `limits` as for `mean_interval`.

    The variance of the mean is (MS_draws + MS_images - MS_rest) / (S n), with the mean squares of
    the analysis of variance (Cornfield and Tukey 1956), no less than that of the images alone.
    Student's quantiles for S - 1 and n - 1 degrees of freedom are weighted by the fractions of the
    two in the variance (Cochran 1964). Of one draw it is `mean_interval` over the images."""
    x = np.asarray(values, dtype=np.float64)
    draws, n = x.shape[-2:]
    if draws == 1 or n < 2:
        # Of one image the draws alone say nothing of others.
        return mean_interval(x.mean(-2), -1, level, limits)
    variance, from_draws = crossed_variance(x)
    few, many = (t.ppf((1 + level) / 2, count - 1) for count in (draws, n))
    half = np.where(variance > 0, (many + (few - many) * from_draws) * np.sqrt(variance), np.nan)
    mean = x.mean((-2, -1))
    return (mean, *_limited(mean, mean - half, mean + half, n, level, limits))


def crossed_variance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean of `values` [..., S, n] over both axes, S above 1, and the fraction in
    it of the mean square of draws."""
    draws, n = values.shape[-2:]
    mean = values.mean(axis=(-2, -1))
    by_draw, by_image = (values.mean(axis=axis) - mean[..., None] for axis in (-1, -2))
    between, within = n * np.square(by_draw).sum(axis=-1), draws * np.square(by_image).sum(axis=-1)
    rest = np.maximum(
        np.square(values - mean[..., None, None]).sum(axis=(-2, -1)) - between - within, 0
    )
    a, b, c = between / (draws - 1), within / (n - 1), rest / ((draws - 1) * (n - 1))
    # Never less than the images alone would give, as a difference of estimates can be.
    variance = np.maximum(a + b - c, b)
    fraction = np.minimum(np.divide(a, variance, out=np.zeros(mean.shape), where=variance > 0), 1)
    return variance / (draws * n), fraction


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of the median of whatever the values [n] are drawn from, without an assumption on
    its shape.

    Order statistics d and n + 1 - d, of which those with d and d + 1 have coverages on either side
    of the level, interpolated between the two (Hettmansperger and Sheather 1986, Statistics and
    Probability Letters 4). NaN for fewer values than give the level by their extremes, at 95 %
    six."""
    ordered, n = np.sort(values), len(values)
    d = int(binom.ppf((1 - level) / 2, n, 0.5))
    if d < 1:
        return np.nan, np.nan
    wide, narrow = (1 - 2 * binom.cdf(k - 1, n, 0.5) for k in (d, d + 1))
    fraction = (wide - level) / (wide - narrow)
    weight = (n - d) * fraction / (d + (n - 2 * d) * fraction)
    low, high = ((1 - weight) * side[d - 1] + weight * side[d] for side in (ordered, ordered[::-1]))
    return float(low), float(high)
