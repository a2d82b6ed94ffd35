"""Accuracy of classifications, and its intervals over test images, over draws of the training
images, and over both.

Where `right` [..., n] marks the n test images that were classified right:

- over test images (`stats.wilson_interval`, `images_interval`): the accuracy of these classifiers
  on the population of the test images;
- over seeds (`seeds_interval`): the mean accuracy, on these test images, of classifiers from other
  draws of training images;
- combined (`combined_interval`): the mean accuracy of classifiers from other draws on the
  population of the test images.

`paired_interval` is of differences of two probes on the same images.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.special import ndtri

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.stats.intervals import crossed_variance, mean_interval
from mixer_probe.stats.proportions import difference_interval, paired_counts, score_interval

Interval = tuple[np.ndarray, np.ndarray]


def accuracy(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Accuracy [...] of `predicted` [..., n] for the labels `y` [n]."""
    return np.asarray((predicted == y).mean(axis=-1))


def balanced_accuracy(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean over the classes in `y` [n] of the accuracy of `predicted` [..., n] on their images:
    [...]."""
    return np.asarray(class_accuracy(predicted == y, y)[0].mean(axis=-1))


def class_accuracy(right: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy per class [..., K] from `right` [..., n], for the K classes in `y` [n], and their
    numbers of images [K]."""
    _, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(right[..., order].astype(np.float64), starts, axis=-1) / counts, counts


@checked(MeasureError)
def balanced_interval(predicted: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of balanced accuracy over test images, for `predicted` [..., n].

    From the Wilson intervals of the classes by the method of variance estimates recovery (Zou and
    Donner 2008): the distance from the mean to its bound is the root of the summed squares of those
    of the classes, divided by their number."""
    rates, counts = class_accuracy(predicted == y, y)
    low, high = score_interval(rates, counts, float(ndtri((1 + confidence) / 2)))
    mean, classes = rates.mean(axis=-1), len(counts)
    down, up = (np.sqrt(np.square(rates - bound).sum(axis=-1)) / classes for bound in (low, high))
    return np.clip(mean - down, 0, 1), np.clip(mean + up, 0, 1)


@checked(MeasureError)
def seeds_interval(accuracies: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of the mean accuracy over seeds, from `accuracies` [..., S]
    (`stats.mean_interval`); NaN for a single seed.

    A bootstrap of three seeds is far too narrow; Student's t, with its 4.3 deviations for three, is
    not."""
    return mean_interval(accuracies, level=confidence, limits=(0, 1))[1:]


@checked(MeasureError)
def images_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] over test images of the mean accuracy of S given classifiers, for `right`
    [..., S, n].

    Wilson's, for the number of independent images that gives the variance of the mean over
    classifiers; n for one classifier."""
    by_image = right.mean(axis=-2)
    mean = by_image.mean(axis=-1)
    effective = _effective(mean, by_image.var(axis=-1) / by_image.shape[-1], by_image.shape[-1])
    return score_interval(mean, effective, float(ndtri((1 + confidence) / 2)))


@checked(MeasureError)
def combined_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of the mean accuracy over draws of training images and test images, for
    `right` [..., S, n].

    Seeds and images are crossed random effects (`stats.crossed_interval`). The interval is Wilson's
    for the number of independent images whose mean has the same variance, with the quantiles of
    Student (S - 1 degrees of freedom) and of the normal distribution weighted by the fractions of
    the two in the variance (Cochran 1964). Its coverage is 95 % where draws differ, and more where
    they differ less than by chance. Of one seed it is Wilson's interval over the n images."""
    seeds, n = right.shape[-2:]
    mean, normal = right.mean(axis=(-2, -1)), float(ndtri((1 + confidence) / 2))
    if seeds == 1:
        return score_interval(mean, n, normal)
    variance, from_seeds = crossed_variance(right.astype(np.float64))
    student = stats.t.ppf((1 + confidence) / 2, seeds - 1)
    return score_interval(
        mean, _effective(mean, variance, n), normal + (student - normal) * from_seeds
    )


def _effective(mean: np.ndarray, variance: np.ndarray, n: int) -> np.ndarray:
    """Number of independent images whose mean accuracy has the given variance; n where all are
    right or all wrong."""
    spread = mean * (1 - mean)
    every = np.full(np.shape(mean), float(n))
    effective: np.ndarray = np.divide(
        spread, variance, out=every, where=(variance > 1e-15) & (spread > 1e-15)
    )
    return effective


@checked(MeasureError)
def paired_interval(
    right: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Difference in accuracy of a classifier and a baseline on the same test images, with the
    bounds of its interval over images: Tango's score interval of the two, and that of a mean where
    either is the average of several seeds.

    Both are [n] or [S, n], and may differ in the number of seeds. Images that are easy for both do
    not widen the interval. Raises MeasureError for other images."""
    own, other = (
        np.atleast_2d(np.asarray(part, dtype=np.float64)).mean(axis=0) for part in (right, baseline)
    )
    if own.shape != other.shape:
        raise MeasureError(
            f"the two were tested on {len(own)} and {len(other)} images: a difference needs the "
            "same"
        )
    if all(np.isin(part, (0, 1)).all() for part in (own, other)):
        low, high = difference_interval(paired_counts(own == 1, other == 1), confidence)
    else:
        _, low, high = mean_interval(own - other, level=confidence, limits=(-1, 1))
    return float((own - other).mean()), float(low), float(high)
