"""Accuracy of classifications, and intervals of it over test images, over draws of the training images, and over both.

Where `right` [..., n] says which of n test images were classified right:

- over test images (`wilson_interval`, `images_interval`): the accuracy that these very classifiers would have on all images
  like the test images;
- over seeds (`seeds_interval`): the mean accuracy, on these test images, of classifiers from other draws of training images;
- combined (`combined_interval`): the mean accuracy of classifiers from other draws on all images like the test images.

The bootstrap gives the same for what has no closed form, such as differences of two probes on the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtri

from mixer_probe.errors import MeasureError

Interval = tuple[np.ndarray, np.ndarray]
RESAMPLES = 1000


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


def wilson_interval(right: Any, n: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Interval of a proportion, of which `right` of `n` were seen (Wilson 1927); always inside [0, 1].

    Numbers give numbers, arrays give arrays. Raises MeasureError unless 0 <= right <= n and n > 0."""
    hits, of = np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if not ((of > 0) & (hits >= 0) & (hits <= of)).all():
        raise MeasureError(f"{right} of {n} is no share")
    low, high = _wilson(hits / of, of, float(ndtri((1 + confidence) / 2)))
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)


def _wilson(share: np.ndarray, n: Any, z: Any) -> Interval:
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    # The bounds are 0 and 1 at the ends; rounding must not push them past the share.
    return np.clip(np.minimum(centre - half, share), 0, 1), np.clip(np.maximum(centre + half, share), 0, 1)


def balanced_interval(predicted: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of balanced accuracy over test images, for `predicted` [..., n].

    From the Wilson intervals of the classes by the method of variance estimates recovery (Zou and Donner 2008): the distance
    from the mean to its bound is the root of the summed squares of those of the classes, divided by their number."""
    share, counts = class_accuracy(predicted == y, y)
    low, high = _wilson(share, counts, float(ndtri((1 + confidence) / 2)))
    mean, classes = share.mean(axis=-1), len(counts)
    down, up = (np.sqrt(np.square(share - bound).sum(axis=-1)) / classes for bound in (low, high))
    return np.clip(mean - down, 0, 1), np.clip(mean + up, 0, 1)


def seeds_interval(accuracies: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's interval [...] of the mean accuracy over seeds, from `accuracies` [..., S]; NaN for a single seed.

    A bootstrap of three seeds is far too narrow; Student's t, with its 4.3 deviations for three, is not."""
    seeds = accuracies.shape[-1]
    mean = accuracies.mean(axis=-1)
    if seeds < 2:
        return np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * accuracies.std(axis=-1, ddof=1) / seeds**0.5
    return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def images_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] over test images of the mean accuracy of S given classifiers, for `right` [..., S, n].

    Wilson's, of so many independent images as give the variance of their mean over classifiers; of one classifier of all n."""
    by_image = right.mean(axis=-2)
    share = by_image.mean(axis=-1)
    effective = _effective(share, by_image.var(axis=-1) / by_image.shape[-1], by_image.shape[-1])
    return _wilson(share, effective, float(ndtri((1 + confidence) / 2)))


def combined_interval(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval [...] of the mean accuracy over draws of training images and test images, for `right` [..., S, n].

    Seeds and images are crossed random effects: the variance of the mean is (MS_seeds + MS_images - MS_rest) / (S n) with the
    mean squares of the analysis of variance (Cornfield and Tukey 1956). So large is the variance of that many independent images,
    and their Wilson interval is taken, with the quantiles of Student (S - 1 degrees of freedom) and of the normal distribution
    weighted by the shares of the two in the variance (Cochran 1964). It covers at 95 % where draws differ, at more where they
    differ less than chance would have it. Of one seed it is Wilson's interval over the n images."""
    variance, from_seeds = _crossed(right.astype(np.float64))
    share = right.mean(axis=(-2, -1))
    normal = float(ndtri((1 + confidence) / 2))
    student = stats.t.ppf((1 + confidence) / 2, right.shape[-2] - 1) if right.shape[-2] > 1 else normal
    return _wilson(share, _effective(share, variance, right.shape[-1]), normal + (student - normal) * from_seeds)


def _effective(share: np.ndarray, variance: np.ndarray, n: int) -> np.ndarray:
    """How many independent images give a share of such a variance; n where all are right or all wrong."""
    spread = share * (1 - share)
    every = np.full(np.shape(share), float(n))
    effective: np.ndarray = np.divide(spread, variance, out=every, where=(variance > 1e-15) & (spread > 1e-15))
    return effective


def _crossed(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean of `right` [..., S, n] over both axes, and the share of the mean square of seeds in it."""
    seeds, n = right.shape[-2:]
    mean = right.mean(axis=(-2, -1))
    if seeds == 1:
        return mean * (1 - mean) / n, np.zeros(mean.shape)
    by_seed, by_image = (right.mean(axis=axis) - mean[..., None] for axis in (-1, -2))
    between, within = n * np.square(by_seed).sum(axis=-1), seeds * np.square(by_image).sum(axis=-1)
    rest = np.maximum(np.square(right - mean[..., None, None]).sum(axis=(-2, -1)) - between - within, 0)
    a, b, c = between / (seeds - 1), within / (n - 1), rest / ((seeds - 1) * (n - 1))
    # Never less than the images alone would give, as a difference of estimates can be.
    variance = np.maximum(a + b - c, b)
    share = np.minimum(np.divide(a, variance, out=np.zeros(mean.shape), where=variance > 0), 1)
    return variance / (seeds * n), share


def bootstrap_interval(
    right: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    over: str = "images",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` of `right` [n] or [S, n], by default its mean.

    `over` is "images" (columns are drawn again), "seeds" (rows) or "both" (rows and columns, independently: the pigeonhole
    bootstrap of Owen 2007, which is never too narrow for images and a little for few seeds). `statistic` takes drawn arrays
    [resamples, S, n] and returns [resamples].

    Raises MeasureError for another `over`, and for seeds where there is one."""
    table = np.atleast_2d(np.asarray(right))
    _check_over(over, len(table))
    random = np.random.default_rng(seed)
    found = [_resampled(table, statistic, over, part, random) for part in _parts(resamples, table)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def paired_interval(
    right: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How much more accurate one classifier is than a baseline on the same test images, with the bounds of a bootstrap.

    Both are [n] or [S, n], and need not have as many seeds. Images are drawn again for both at once, so that what makes an image
    easy for both does not widen the interval. Raises MeasureError for other images."""
    mine, other = (np.atleast_2d(np.asarray(part, dtype=np.float64)).mean(axis=0) for part in (right, baseline))
    if mine.shape != other.shape:
        raise MeasureError(f"the two were tested on {len(mine)} and {len(other)} images: a difference needs the same")
    low, high = bootstrap_interval(mine - other, confidence=confidence, resamples=resamples, seed=seed)
    return float((mine - other).mean()), low, high


def _check_over(over: str, seeds: int) -> None:
    if over not in ("images", "seeds", "both"):
        raise MeasureError(f"over is 'images', 'seeds' or 'both', not '{over}'")
    if over != "images" and seeds < 2:
        raise MeasureError("there is one seed: an interval over seeds needs two or more")


def _parts(resamples: int, table: np.ndarray) -> list[int]:
    """Resamples in parts that fit into memory."""
    size = max(1, 2**24 // table.size)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _resampled(
    table: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] | None, over: str, draws: int, random: np.random.Generator
) -> np.ndarray:
    seeds, n = table.shape
    rows = random.integers(seeds, size=(draws, seeds)) if over != "images" else np.arange(seeds)[None].repeat(draws, 0)
    if statistic is None:
        # A mean needs how often each was drawn, not the draws.
        images = random.multinomial(n, np.full(n, 1 / n), size=draws) / n if over != "seeds" else np.full((draws, n), 1 / n)
        return np.asarray(((images @ table.T)[np.arange(draws)[:, None], rows]).mean(axis=1))
    columns = random.integers(n, size=(draws, n)) if over != "seeds" else np.arange(n)[None].repeat(draws, 0)
    return np.asarray(statistic(table[rows[:, :, None], columns[:, None, :]]))
