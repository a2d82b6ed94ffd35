"""Ridge regression of many targets on one feature matrix: one eigendecomposition for all targets
and all penalties.

A control task, a random labelling and a property of an image are all targets on the same features,
and only the targets differ; so Z'Z (or ZZ') is decomposed once and every target costs two thin
products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.rows import Rows
from mixer_probe.linear.classifier import decided_class, last_best
from mixer_probe.linear.ridge import Ridge, eigen, gram
from mixer_probe.linear.ridge_path import LeftOut, one_hot
from mixer_probe.linear.ridge_probe import LEFT_OUT
from mixer_probe.linear.scaling import ColumnScaling, block_of, blocks, resolution
from mixer_probe.linear.stratification import stratified

# Targets [b, k] of some of the training images.
Targets = Callable[[slice | np.ndarray], Tensor]


@dataclass(frozen=True)
class RidgeFits:
    """Ridge regressions of k targets on standardised features, for every penalty of `l2` [m].

    `left` are the training images that can be left out, by their indices."""

    ridge: Ridge
    left: LeftOut
    targets: Targets
    l2: np.ndarray

    @classmethod
    def of(cls, X: Any, targets: Targets, l2: np.ndarray, left_out: np.ndarray) -> RidgeFits:
        """Fit to features `X` [n, p], an array or `Rows` of one; the images at `left_out` can be
        left out. Of p <= n features a block of images is in memory at a time."""
        n, p = X.shape
        rows = torch.from_numpy(left_out)
        if p > n:
            ridge, projected = Ridge.of(X, targets(slice(None)), dual=True)
            left = LeftOut(rows, projected=projected[rows])
        else:
            ridge, left = _primal(X, targets), LeftOut(rows, Rows(X, left_out))
        return cls(ridge, left, targets, np.asarray(l2, dtype=np.float64))

    def left_out(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of the images that can be left out: their places among these, B'z of each [b, r],
        and predictions [b, m, k] by the fits to all others."""
        l2, images = torch.from_numpy(self.l2), self.left.labels.numpy()
        width = max(len(self.ridge.scaling.mean), len(l2) * len(self.ridge.intercept))
        for rows in blocks(len(images), width):
            projected, targets = self.left.project(self.ridge, rows), self.targets(images[rows])
            yield rows, projected, self.ridge.left_out(projected, targets, l2)

    def predictions(self, new: Any, chosen: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Predictions [b, k] for blocks of the images `new` [n, p], each target by its own penalty
        `l2[chosen]`, with the rows of each block."""
        ridge, l2 = self.ridge, torch.from_numpy(self.l2[chosen])
        weights = ridge.targets / (ridge.eigenvalues[:, None] + l2)
        for rows in blocks(len(new), max(new.shape[1], weights.shape[1])):
            yield rows, (ridge.project(new, rows) @ weights + ridge.intercept).numpy()


def _primal(X: Any, targets: Targets) -> Ridge:
    """The regressions from Z'Z [p, p] and Z'T [p, k], which are added up in one pass over the
    images, about the mean of the first block."""
    n, p = X.shape
    shift, outer = torch.empty(0), torch.zeros(p, p, dtype=torch.float64)
    cross, total = torch.zeros(p, 0), torch.zeros(0)
    for rows in blocks(n, p):
        block, T = block_of(X, rows), targets(rows)
        if rows.start == 0:
            shift, offset = block.mean(0), block.new_zeros(p)
            cross, total = block.new_zeros(p, T.shape[1]), block.new_zeros(T.shape[1])
        block -= shift
        outer += gram(block)
        offset += block.sum(0)
        cross.addmm_(block.T, T)
        total += T.sum(0)
    offset, intercept = offset / n, total / n
    outer.addr_(offset, offset, alpha=-n)
    scaling = ColumnScaling.of(shift + offset, outer.diagonal() / n, True, resolution(X))
    values, basis = eigen(outer.div_(scaling.scale).div_(scaling.scale[:, None]))
    scaled = cross.addr_(offset, intercept, alpha=-n).div_(scaling.scale[:, None])
    return Ridge(scaling, basis, values, basis.T @ scaled, intercept, n)


@dataclass(frozen=True)
class ManyLabels:
    """Ridge classifications of t labellings of the same images.

    `predicted` [s, t] for the new images, and for each labelling [t] the penalty chosen by
    leave-one-out accuracy (of equals the largest), and the accuracy on the same training images
    when they are not left out, with the smallest penalty (`memorised`)."""

    predicted: np.ndarray
    l2: np.ndarray
    left_out_accuracy: np.ndarray
    memorised: np.ndarray


def classify(X: Any, labels: np.ndarray, new: Any, classes: int, l2: np.ndarray) -> ManyLabels:
    """Ridge classifiers of `labels` [n, t] (0 to `classes` - 1) on features `X` [n, p], each
    labelling with its own penalty of `l2` [m], for images `new` [s, p].

    At most `LEFT_OUT` training images are left out in turn."""
    left_out = stratified(labels[:, 0], LEFT_OUT)
    truth, t = labels[left_out], labels.shape[1]

    def targets(rows: slice | np.ndarray) -> Tensor:
        return one_hot(torch.from_numpy(labels[rows]), classes).flatten(1)

    def decided(scores: np.ndarray) -> np.ndarray:
        return decided_class(scores.reshape(len(scores), t, -1))

    fits = RidgeFits.of(X, targets, l2, left_out)
    right, memorised = np.zeros((len(l2), t)), np.zeros(t)
    smallest = torch.from_numpy(fits.l2[:1])
    for rows, projected, found in fits.left_out():
        for i in range(len(l2)):
            right[i] += (decided(found[:, i].numpy()) == truth[rows]).sum(axis=0)
        fitted = fits.ridge.fitted(projected, smallest)[:, 0].numpy()
        memorised += (decided(fitted) == truth[rows]).sum(axis=0)
    right /= len(truth)
    chosen = last_best(right)
    predicted = np.empty((len(new), t), dtype=np.intp)
    for rows, scores in fits.predictions(new, np.repeat(chosen, len(fits.ridge.intercept) // t)):
        predicted[rows] = decided(scores)
    best = right[chosen, np.arange(t)]
    return ManyLabels(predicted, fits.l2[chosen], best, memorised / len(truth))
