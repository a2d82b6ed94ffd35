"""Intervals of similarities over images: which values of the population the images at hand allow.

All are jackknife intervals: a measure is taken anew without some of the images, and how far those
values scatter says how far the value would move had other images been drawn (Efron and Stein 1981,
Annals of Statistics 9: never too little on average). A bootstrap would put an image beside its own
copy, which measures of distances or neighbours take for the most similar image of all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import storable
from mixer_probe.similarity.hsic import Estimator

_LEVEL = 0.95
FEWEST = 20
# With fewer images the spread is too uncertain for an interval.
FEWEST_IMAGES = 20
# No sum of weighted chi-squares with one degree of freedom has its 95 % quantile farther out, in
# standard deviations.
_FARTHEST = 2.01
# Measures other than CKA, many of which have heavier tails: with fewer images skewed features leave
# an interval 91 % coverage.
FEWEST_IN_GROUPS = 50
# Why CKA with a Gaussian kernel has none.
OF_RBF = "the jackknife covers 87 to 92 % where representations are nearly the same"
# Values this close to 1 are 1 to the rounding of wide float32 features.
_EQUAL = 1e-8


@dataclass(frozen=True)
class Scale:
    """A transformation of the values of a measure, increasing or decreasing, with its inverse;
    beyond `equal` on either side of 0 representations are equal. `canonical` ones are of means of
    canonical correlations."""

    of: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    equal: float = math.atanh(1 - _EQUAL)
    canonical: bool = False


# Rounding may leave a correlation a little beyond 1.
FISHER = Scale(lambda r: np.arctanh(np.clip(r, -1, 1)), np.tanh)
CANONICAL = replace(FISHER, canonical=True)


@storable
@dataclass(frozen=True)
class Interval:
    """95 % interval [`low`, `high`] of every cell [La, Lb], from `resamples` values without some of
    the images, by the `method`; NaN where undefined.

    Of unbiased CKA it is the interval of the CKA of the population. Of every other measure, all of
    which depend on the number of images, it is that of the mean value over draws of as many
    images."""

    low: Annotated[np.ndarray, "layer_a", "layer_b"]
    high: Annotated[np.ndarray, "layer_a", "layer_b"]
    resamples: int
    method: str = "jackknife over groups of images"


def no_interval(shape: tuple[int, ...], reason: str) -> Interval:
    """No interval in any cell, for a `reason`."""
    return Interval(np.full(shape, np.nan), np.full(shape, np.nan), 0, f"none: {reason}")


def check_resamples(resamples: int) -> None:
    """Raise MeasureError for a count that allows no 95 % interval; 0 means no interval."""
    if resamples != 0 and resamples < FEWEST:
        raise MeasureError(
            f"{resamples} resamples give no 95 % interval: take {FEWEST} or more, or 0"
        )


def draw_groups(n: int, resamples: int, seed: int, minimum: int) -> list[Tensor]:
    """The images [m] that are left when one of `resamples` random groups is left out, a group each;
    at most n groups.

    None for fewer than 50 images, or where fewer than `minimum` would be left."""
    count = min(n, resamples)
    if not count or n < FEWEST_IN_GROUPS or n - math.ceil(n / count) < minimum:
        return []
    groups = np.array_split(np.random.default_rng([seed, n]).permutation(n), count)
    return [torch.from_numpy(np.setdiff1d(np.arange(n), group)) for group in groups]


def group_interval(
    values: np.ndarray,
    without: np.ndarray,
    null: np.ndarray,
    quantile95: np.ndarray,
    direction: int,
    limits: tuple[float, float],
    scale: Scale = FISHER,
) -> Interval | None:
    """The interval of `values` [La, Lb] from those `without` one group of images each [g, La, Lb];
    None without any.

    It is symmetric on a `scale` on which values spread alike wherever they are: Fisher's z of a
    correlation. (g - 1) / g times the sum of squared deviations there is the variance, Student's t
    the reach. Its degrees of freedom are those of a variance of g values with their kurtosis k, 2 g
    / (k - 1) (Satterthwaite 1946), between 3 and g - 1, so that a few images that matter more than
    all others widen it. The jackknife counts the part of a variance that comes from products of
    images twice or more often. A value that its `null` allows varies for the most part by such
    products: there half of the variance is taken, and no less than the null's. At a mean canonical
    correlation c beyond its null about 1 - c^2 times the null's variance comes from them, and is
    taken off.

    As a test does, the interval reaches past the null's mean if and only if the value is not beyond
    `quantile95`. It is cut to the range `limits` of the measure. Equal representations have an
    interval of no width. There is none (NaN) where leaving out images alone makes the
    representations equal, as with as many features as there are images left."""
    count = len(without)
    if count == 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        z, parts = scale.of(values), scale.of(without)
        away = parts - parts.mean(axis=0)
        spread = np.square(away).mean(axis=0)
        freedom = np.clip(
            2 * count / ((away**4).mean(axis=0) / np.square(spread) - 1), 3, count - 1
        )
        variance = spread * (count - 1)
        beyond = direction * values > direction * quantile95
        if len(null) > 1:
            by_chance = scale.of(null).var(axis=0, ddof=1)
            products = by_chance * (1 - np.square(values)) if scale.canonical else 0
            variance = np.where(
                beyond,
                np.maximum(variance - products, variance / 2),
                np.maximum(variance / 2, by_chance),
            )
        half = t.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(variance)
        half = np.where((np.abs(parts) > scale.equal).any(axis=0), np.nan, half)
        bounds = np.sort([scale.back(z + side) for side in (-half, half)], axis=0)
        if len(null) > 1:
            middle = scale.back(scale.of(null).mean(axis=0))
            past = direction * np.maximum(direction * bounds, direction * middle)
            bounds = np.where(
                beyond, past, [np.minimum(bounds[0], middle), np.maximum(bounds[1], middle)]
            )
        low, high = np.where(np.abs(z) > scale.equal, values, np.clip(bounds, *limits))
    return Interval(low, high, count)


def batch_interval(values: np.ndarray, without: np.ndarray) -> Interval:
    """The interval of CKA `values` [La, Lb] of minibatches, from those `without` one batch each [b,
    La, Lb].

    It is symmetric in artanh of the root where that leaves out 0, else in artanh."""
    count = len(without)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = t.ppf((1 + _LEVEL) / 2, count - 1) * np.sqrt(without.var(axis=0) * (count - 1))
        sides = zip(_root_interval(values, half), _z_interval(values, half), strict=True)
        low, high = (np.where(values > half, *side) for side in sides)
    return Interval(low, high, count, f"jackknife over the {count} batches")


def cka_interval(
    values: np.ndarray,
    variance: np.ndarray,
    leading: np.ndarray,
    quantile95: np.ndarray | None,
    estimator: Estimator,
    m: int,
    n: int,
) -> Interval:
    """The interval of CKA `values` [La, Lb] over `n` images, from the jackknife `variance` [La, Lb]
    over `m` of them.

    Unbiased HSIC is a U-statistic: its variance has a part that falls as 1 / n, of a mean over
    images, and one that falls as 1 / n^2, of a mean over pairs, which the jackknife counts twice.
    Under independence only pairs are left, with the variance 2 / (n (n - 3)) whatever the features;
    at a CKA of c they have about (1 - c^2)^2 times that, as a correlation over that many pairs. The
    second count is taken off in so far as the variance consists of pairs.

    A value beyond `quantile95`, the 95 % quantile of its null, has an interval that is symmetric in
    artanh(sqrt(c)), for one dimension Fisher's z of the correlation, and that leaves out 0. Any
    other has one that holds 0, and reaches up to the c whose spread allows the value: near 0 the
    variance grows with c, by up to 4 c / n times the product of the `leading` fractions [La, Lb] of
    both sides if only the leading dimensions are related; a quarter of that is taken. So the
    interval holds 0 if and only if the null does not rule it out.

    The biased estimator, which is far from 0 under independence, has the jackknife's interval with
    nothing taken off."""
    method = "jackknife over the images" if m == n else f"jackknife over {m} of {n} images, scaled"
    reach = float(t.ppf((1 + _LEVEL) / 2, m - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        if estimator == "biased":
            low, high = _z_interval(values, reach * np.sqrt(variance * m / n))
            return Interval(low, high, m, method)
        independent = 2 / (n * (n - 3))
        ratio = np.square(1 - np.square(values))
        pairs = independent * ratio
        total = np.maximum(variance - 4 / (m * (m - 3)) * ratio, 0) * m / n + 2 * pairs
        error = np.sqrt(total * (1 - np.square(2 * pairs / total) / 2))
        limit = _FARTHEST * math.sqrt(independent) if quantile95 is None else quantile95
        plain = _z_interval(values, reach * error)
        growth = reach**2 * leading / n
        upper = (
            values
            + (
                growth
                + np.sqrt(
                    np.square(growth) + 4 * np.maximum(reach**2 * independent + growth * values, 0)
                )
            )
            / 2
        )
        near = np.minimum(plain[0], 0), np.maximum(np.maximum(upper, plain[1]), 0)
        low, high = (
            np.where(values > limit, *sides)
            for sides in zip(_root_interval(values, reach * error), near, strict=True)
        )
    known = np.isfinite(values)
    return Interval(
        np.where(known, low, np.nan), np.where(known, np.minimum(high, 1), np.nan), m, method
    )


def _z_interval(values: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that are symmetric in artanh, for a half width `half` of the value itself."""
    middle, wide = np.arctanh(values), half / (1 - np.square(values))
    return _unless_equal(values, np.tanh(middle - wide), np.tanh(middle + wide))


def _root_interval(values: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that are symmetric in artanh of the root, and above 0."""
    roots = np.sqrt(np.maximum(values, 0))
    middle, wide = np.arctanh(roots), half / (2 * roots * (1 - values))
    low = np.square(np.tanh(np.maximum(middle - wide, 0)))
    return _unless_equal(
        values, np.maximum(low, np.finfo(float).tiny), np.square(np.tanh(middle + wide))
    )


def _unless_equal(
    values: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds, which for equal representations are the value itself."""
    same = np.abs(values) > 1 - _EQUAL
    return np.where(same, values, low), np.where(same, values, high)
