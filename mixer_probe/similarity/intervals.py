"""Intervals of similarities over images: how far a value would move had other images been drawn.

The resamples are random halves of the images, the bootstrap with exchangeable weights 0 and 2 (Praestgaard and Wellner
1993; for the jackknife that deletes half, Shao and Wu 1989). Drawing with replacement would put an image beside itself, and
a measure of distances or neighbours would take the copy for the most similar image of all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.results import storable
from mixer_probe.similarity.hsic import MINIMUM_IMAGES

_LEVEL = 0.95
FEWEST = 20


@storable
@dataclass(frozen=True)
class Interval:
    """95 % interval [`low`, `high`] of every cell [La, Lb], from `resamples` draws by the `method`; NaN where undefined.

    Near independence it is about 1.7 times wider than it need be: there the value varies by products of two images, whose
    spread halves show once too often. It errs on the safe side, and the null answers whether there is anything at all."""

    low: np.ndarray
    high: np.ndarray
    resamples: int
    method: str = "halves of the images"


def check_resamples(resamples: int) -> None:
    """Raise MeasureError for a count that allows no 95 % interval; 0 means no interval."""
    if resamples != 0 and resamples < FEWEST:
        raise MeasureError(f"{resamples} resamples give no 95 % interval: take {FEWEST} or more, or 0")


def draw_halves(n: int, resamples: int, seed: int, minimum: int = MINIMUM_IMAGES) -> Tensor:
    """Weights [n, resamples] of 0 and 1, half of the images each; no columns where a half has fewer than `minimum`."""
    if n // 2 < minimum:
        return torch.zeros(n, 0, dtype=torch.float64)
    generator = np.random.default_rng([seed, n])
    order = generator.random((n, resamples)).argsort(axis=0)
    return torch.from_numpy((order < n // 2).astype(np.float64))


def interval_of(
    values: np.ndarray,
    resampled: np.ndarray,
    limits: tuple[float, float],
    *,
    scale: float = 1.0,
    method: str = "halves of the images",
) -> Interval | None:
    """The interval of `values` [La, Lb] from `resampled` ones [r, La, Lb]; None without any.

    Quantiles of the deviations from the resamples' own mean, times `scale`, about the value: a half of the images may read
    higher or lower on average, which says nothing about other images. Cut to the range `limits` of the measure."""
    if len(resampled) == 0:
        return None
    with warnings.catch_warnings():
        # Cells that are not defined are all NaN, and say so elsewhere.
        warnings.simplefilter("ignore", RuntimeWarning)
        deviations = resampled - np.nanmean(resampled, axis=0)
        tail = (1 - _LEVEL) / 2
        low, high = np.nanquantile(deviations, [tail, 1 - tail], axis=0) * scale
    low, high = (np.clip(values + side, *limits) for side in (np.minimum(low, 0), np.maximum(high, 0)))
    return Interval(low, high, len(resampled), method)
