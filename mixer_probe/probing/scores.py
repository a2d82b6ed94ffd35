"""Accuracy of classifications, and intervals of it over test images, over draws of the training images, and over both.

Where `right` [..., n] says which of n test images were classified right:

- over test images (`stats.wilson_interval`, `images_interval`): the accuracy that these very classifiers would have on all images
  like the test images;
- over seeds (`seeds_interval`): the mean accuracy, on these test images, of classifiers from other draws of training images;
- combined (`combined_interval`): the mean accuracy of classifiers from other draws on all images like the test images.

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
    """Share [...] of the labels `y` [n] that `predicted` [..., n] has right."""
    return np.asarray((predicted == y).mean(axis=-1))


def balanced_accuracy(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean over the classes in `y` [n] of the share of their images that `predicted` [..., n] has right: [...]."""
    return np.asarray(class_accuracy(predicted == y, y)[0].mean(axis=-1))


def class_accuracy(right: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each class's images that are `right` [..., n]: [..., K] for the K classes in `y` [n], and their numbers [K]."""
    _, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(right[..., order].astype(np.float64), starts, axis=-1) / counts, counts


@checked(MeasureError)
def balanced_interval(predicted: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of balanced accuracy over test images, for `predicted` [..., n].

    From the Wilson intervals of the classes by the method of variance estimates recovery (Zou and Donner 2008): the distance
    from the mean to its bound is the root of the summed squares of those of the classes, divided by their number."""
    share, counts = class_accuracy(predicted == y, y)
    low, high = score_interval(share, counts, float(ndtri((1 + confidence) / 2)))
    mean, classes = share.mean(axis=-1), len(counts)
    down, up = (np.sqrt(np.square(share - bound).sum(axis=-1)) / classes for bound in (low, high))
    return np.clip(mean - down, 0, 1), np.clip(mean + up, 0, 1)


@checked(MeasureError)
def seeds_interval(accuracies: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of the mean accuracy over seeds, from `accuracies` [..., S] (`stats.mean_interval`); NaN for a single seed.

    A bootstrap of three seeds is far too narrow; Student's t, with its 4.3 deviations for three, is not."""
    return mean_interval(accuracies, level=confidence, limits=(0, 1))[1:]


@checked(MeasureError)
def images_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] over test images of the mean accuracy of S given classifiers, for `right` [..., S, n].

    Wilson's, of so many independent images as give the variance of their mean over classifiers; of one classifier of all n."""
    by_image = right.mean(axis=-2)
    share = by_image.mean(axis=-1)
    effective = _effective(share, by_image.var(axis=-1) / by_image.shape[-1], by_image.shape[-1])
    return score_interval(share, effective, float(ndtri((1 + confidence) / 2)))


@checked(MeasureError)
def combined_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of the mean accuracy over draws of training images and test images, for `right` [..., S, n].

    Seeds and images are crossed random effects (`stats.crossed_interval`). So large as the variance of the mean is that of so
    many independent images, and their Wilson interval is taken, with the quantiles of Student (S - 1 degrees of freedom) and of
    the normal distribution weighted by the shares of the two in the variance (Cochran 1964). It covers at 95 % where draws
    differ, at more where they differ less than chance would have it. Of one seed it is Wilson's interval over the n images."""
    seeds, n = right.shape[-2:]
    share, normal = right.mean(axis=(-2, -1)), float(ndtri((1 + confidence) / 2))
    if seeds == 1:
        return score_interval(share, n, normal)
    variance, from_seeds = crossed_variance(right.astype(np.float64))
    student = stats.t.ppf((1 + confidence) / 2, seeds - 1)
    return score_interval(share, _effective(share, variance, n), normal + (student - normal) * from_seeds)


def _effective(share: np.ndarray, variance: np.ndarray, n: int) -> np.ndarray:
    """How many independent images give a share of such a variance; n where all are right or all wrong."""
    spread = share * (1 - share)
    every = np.full(np.shape(share), float(n))
    effective: np.ndarray = np.divide(spread, variance, out=every, where=(variance > 1e-15) & (spread > 1e-15))
    return effective


@checked(MeasureError)
def paired_interval(right: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """How much more accurate one classifier is than a baseline on the same test images, with the bounds of the interval over
    images: Tango's score interval of the two, and that of a mean where either is the average of several seeds.

    Both are [n] or [S, n], and need not have as many seeds. What makes an image easy for both does not widen the interval. Raises
    MeasureError for other images."""
    mine, other = (np.atleast_2d(np.asarray(part, dtype=np.float64)).mean(axis=0) for part in (right, baseline))
    if mine.shape != other.shape:
        raise MeasureError(f"the two were tested on {len(mine)} and {len(other)} images: a difference needs the same")
    if all(np.isin(part, (0, 1)).all() for part in (mine, other)):
        low, high = difference_interval(paired_counts(mine == 1, other == 1), confidence)
    else:
        _, low, high = mean_interval(mine - other, level=confidence, limits=(-1, 1))
    return float((mine - other).mean()), float(low), float(high)
