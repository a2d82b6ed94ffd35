"""Intervals for other training images and other test images, from a delete-group jackknife of the
training images."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t

from mixer_probe.stats.intervals import Bounds


def jackknife_variance(left_out: Any) -> tuple[np.ndarray, np.ndarray]:
    """Variance [...] over training sets of a mean over n test images, and the part of it that is of
    these test images alone.

    `left_out` [..., G, n] are the values of the images when the fit leaves out one of G groups of
    the training images. The variance is (G - 1) / G times the sum over groups of the squared
    deviation of their means (Shao and Tu 1995, The Jackknife and Bootstrap, section 2.3). The part
    is what the interaction of training and test images adds to it, (G - 1) / G times the sum of
    squared standard errors of these deviations over images; the spread of the values over images
    has that interaction already."""
    values = np.asarray(left_out, dtype=np.float64)
    groups, n = values.shape[-2:]
    away = values - values.mean(axis=-2, keepdims=True)
    total, interaction = np.square(away.mean(axis=-1)), away.var(axis=-1) / (n - 1)
    factor = (groups - 1) / groups
    return factor * total.sum(axis=-1), factor * interaction.sum(axis=-1)


def training_interval(
    value: Any, low: Any, high: Any, left_out: Any, level: float = 0.95
) -> Bounds:
    """Bounds of a mean over test images, `value` [...], for other training and other test images;
    NaN for one test image.

    `low` and `high` bound it over the n test images given the fit, by Student's t with n - 1
    degrees of freedom; `left_out` [..., G, n] are as for `jackknife_variance`. For each side the
    squared standard error over test images and the variance over training images are added, their
    interaction once (crossed random effects). Student's quantile has the degrees of freedom of the
    sum (Welch 1947, Satterthwaite 1946), no fewer than the smaller of G - 1 and n - 1. The interval
    is never narrower than over the test images alone."""
    groups, n = np.shape(left_out)[-2:]
    if n < 2:
        nothing = np.full(np.shape(value), np.nan)
        return nothing, nothing
    from_training, interaction = jackknife_variance(left_out)
    arms = []
    for arm in (np.subtract(value, low), np.subtract(high, value)):
        from_test = np.square(arm / t.ppf((1 + level) / 2, n - 1))
        total = from_test + np.maximum(from_training - interaction, 0)
        spread = (
            from_training**2 / (groups - 1)
            + from_test**2 / (n - 1)
            + interaction**2 / ((groups - 1) * (n - 1))
        )
        freedom = np.divide(
            total**2, spread, out=np.full(np.shape(total), n - 1.0), where=spread > 0
        )
        freedom = np.maximum(freedom, min(groups, n) - 1)
        arms.append(np.maximum(arm, t.ppf((1 + level) / 2, freedom) * np.sqrt(total)))
    return value - arms[0], value + arms[1]
