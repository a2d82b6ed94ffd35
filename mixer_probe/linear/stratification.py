"""Stratified draws of images, and which training images are left out to choose among the values of
a path."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked

# Left out once, where several folds would each cost a fit.
_LEFT_OUT_FRACTION = 0.2


@checked(MeasureError)
def few_of_each(y: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Sorted indices of `shots` images per class, drawn with `seed`; those of fewer shots are among
    those of more."""
    order, rank = _ranks(y, seed)
    return np.sort(order[rank < shots])


@checked(MeasureError)
def stratified(y: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Sorted indices of `size` of the images, drawn with `seed` in proportion to the classes `y`
    [n]."""
    order, rank = _ranks(y, seed)
    _, inverse, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    return np.sort(order[np.argsort((rank + 0.5) / counts[inverse], kind="stable")[:size]])


def _ranks(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random order of all images, and the number of images of the same class before each in
    it."""
    order = np.random.default_rng(seed).permutation(len(y))
    _, inverse, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    rank = np.empty(len(y), dtype=np.int64)
    rank[np.argsort(inverse, kind="stable")] = np.arange(len(y)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    return order, rank


@checked(MeasureError)
def left_out_folds(y: np.ndarray, folds: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """Sorted indices of the images that are left out of each fit: a stratified draw with `seed`.

    `folds` None leaves out a fifth of the images once; otherwise every image is left out of one of
    `folds` fits. The only image of a class is never left out, so that every fit knows the class.

    Raises MeasureError for fewer than two folds, and where no class has images to spare."""
    n = len(y)
    ends = (
        [max(1, round(_LEFT_OUT_FRACTION * n))]
        if folds is None
        else [round(n * (f + 1) / folds) for f in range(folds)]
    )
    # Draws with one seed contain the smaller ones: their differences are the folds.
    draws = [np.empty(0, dtype=np.int64), *(stratified(y, end, seed) for end in ends)]
    _, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[inverse] > 1)
    found = [np.intersect1d(np.setdiff1d(b, a), several) for a, b in pairwise(draws)]
    found = [rows for rows in found if len(rows)]
    if not found:
        raise MeasureError(
            "the classes have too few training images to leave some out: take more images, or one "
            "value"
        )
    return found
