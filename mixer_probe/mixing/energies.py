"""`Energies`: what the Jacobian of a layer has between positions, in groups of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixer_probe.mixing.cells import Grid


@dataclass(frozen=True)
class Energies:
    """Squared Frobenius norms of the blocks of a Jacobian between positions, averaged over images.

    `own` [group, row, source] is the mean over the images of a group of |J_ij|_F^2, from position j
    of the grid `source` to the output position i = `rows`[row] of the grid `grid`; `crossed` the
    mean over pairs of different images x, y of the group of the inner product <J_ij(x), J_ij(y)>,
    NaN for a group of one image, and `prefix` [group, row] the part of prefix tokens. `images`
    [group] is how many images a group has. Groups are independent of each other: images of a group
    share their random vectors, which those of others do not."""

    grid: Grid
    source: Grid
    rows: np.ndarray
    own: np.ndarray
    crossed: np.ndarray
    prefix: np.ndarray
    images: np.ndarray

    def mean(self, values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """The mean over the images of some groups, by default of all, of one of the arrays."""
        weight = self.images if groups is None else np.where(groups, self.images, 0)
        found: np.ndarray = np.tensordot(weight / weight.sum(), values, 1)
        return found
