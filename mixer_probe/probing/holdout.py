"""Which training images are left out of a fit, to choose among the values of a path by them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.probing.labels import stratified

# Left out where folds would cost as many fits.
SHARE = 0.2


@checked(MeasureError)
def left_out_folds(y: np.ndarray, folds: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """Sorted indices of the images that are left out of each fit: of every class its share, drawn with `seed`.

    `folds` None leaves out a fifth of the images once; otherwise every image is left out of one of `folds` fits. The only image
    of a class is never left out, so that every fit knows the class.

    Raises MeasureError for fewer than two folds, and where no class has images to spare."""
    n = len(y)
    ends = [max(1, round(SHARE * n))] if folds is None else [round(n * (f + 1) / folds) for f in range(folds)]
    # Draws of one seed hold the smaller ones: their differences are the folds.
    draws = [np.empty(0, dtype=np.int64), *(stratified(y, end, seed) for end in ends)]
    _, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[inverse] > 1)
    found = [np.intersect1d(np.setdiff1d(b, a), several) for a, b in pairwise(draws)]
    found = [rows for rows in found if len(rows)]
    if not found:
        raise MeasureError("the classes have too few training images to leave some out: take more images, or one value")
    return found
