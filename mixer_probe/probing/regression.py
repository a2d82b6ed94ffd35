"""Ridge regression of many targets on one feature matrix: one eigendecomposition for all targets and all penalties.

A control task, a random labelling and a property of an image are all targets on the same features, and only the targets
differ; so Z'Z (or ZZ') is decomposed once and every target costs two thin products. The leave-one-out predictions are those
of `solution` (Allen 1974, PRESS), which has the same for classes, from moments.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from mixer_probe.core.errors import NonFiniteWarning
from mixer_probe.probing.path import decided_class
from mixer_probe.probing.runs import layer_pair
from mixer_probe.probing.solution import ColumnScaling, block_of, column_scaling, decomposed, one_hot
from mixer_probe.similarity.inputs import RepresentationsLike


@dataclass(frozen=True)
class RidgeFits:
    """Ridge regressions of `targets` [n, k] on standardised features, for every penalty of `l2` [m].

    For r nonzero eigenvalues e [r] of Z'Z: `basis` B [p, r] orthonormal, `projected` ZB [n, r] and `towards` B'Z'T [r, k] for the
    targets T minus their `mean` [k], so that W(l2) = B diag(1 / (e + l2)) B'Z'T."""

    l2: np.ndarray
    scaling: ColumnScaling
    eigenvalues: np.ndarray
    basis: np.ndarray
    projected: np.ndarray
    towards: np.ndarray
    mean: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, targets: np.ndarray, l2: np.ndarray) -> RidgeFits:
        """Fit to features `X` [n, p] and `targets` [n, k]; the intercepts are not penalised."""
        scaling = column_scaling(X, True, torch.device("cpu"))
        Z = scaling.apply(block_of(X, slice(None)))
        eigenvalues, basis, projected = (part.numpy() for part in decomposed(Z, dual=Z.shape[1] > Z.shape[0]))
        empty = np.empty((len(X), 0))
        return cls(np.asarray(l2, np.float64), scaling, eigenvalues, basis, projected, empty, empty, empty).of_others(targets)

    def of_others(self, targets: np.ndarray) -> RidgeFits:
        """Regressions of other `targets` [n, k] on the same features, whose decomposition is kept."""
        T = np.asarray(targets, dtype=np.float64)
        mean = T.mean(axis=0)
        return replace(self, towards=self.projected.T @ (T - mean), mean=mean, targets=T)

    def fitted(self, i: int) -> np.ndarray:
        """Predictions [n, k] for the training rows by the fit with penalty `l2[i]`."""
        return self.predict(self.projected, i)

    def left_out(self, i: int) -> np.ndarray:
        """Predictions [n, k] of each training row by the fit to all others with penalty `l2[i]`."""
        leverage = 1 / len(self.targets) + self.projected**2 @ (1 / (self.eigenvalues + self.l2[i]))
        # A whole share of 1 is left to rounding where the fit goes through its images.
        leverage = np.minimum(leverage, 1 - 1e-12)
        left_out: np.ndarray = self.targets - (self.targets - self.fitted(i)) / (1 - leverage)[:, None]
        return left_out

    def project(self, X: np.ndarray) -> np.ndarray:
        """New rows `X` [images, p] in the basis of the decomposition [images, r], for `predict`."""
        projected: np.ndarray = self.scaling.apply(block_of(X, slice(None))).numpy() @ self.basis
        return projected

    def predict(self, projected: np.ndarray, i: int) -> np.ndarray:
        """Predictions [images, k] for rows from `project`, by the fit with penalty `l2[i]`."""
        predicted: np.ndarray = projected @ (self.towards / (self.eigenvalues + self.l2[i])[:, None]) + self.mean
        return predicted


@dataclass(frozen=True)
class ManyLabels:
    """What a ridge classifier did with several labellings of the same images.

    `predicted` [images, t] for the new rows, and for each labelling [t] the penalty chosen by leave-one-out accuracy (of equals
    the largest), that accuracy, and the accuracy on the training rows themselves."""

    predicted: np.ndarray
    l2: np.ndarray
    left_out_accuracy: np.ndarray
    fitted_accuracy: np.ndarray


def classify_many(X: np.ndarray, labels: np.ndarray, X_new: np.ndarray, classes: int, l2: np.ndarray) -> ManyLabels:
    """Ridge classifiers of `labels` [n, t] (0 to `classes` - 1) on `X` [n, p], each with its own penalty, for `X_new`."""
    fits = RidgeFits.of(X, np.empty((len(labels), 0)), l2)
    return classify_with(fits, labels, fits.project(X_new), classes)


def classify_with(fits: RidgeFits, labels: np.ndarray, new: np.ndarray, classes: int) -> ManyLabels:
    """`classify_many` with features that are decomposed, and new rows [images, r] that are projected, already."""
    targets, l2 = one_hot(torch.from_numpy(labels), classes).numpy(), fits.l2
    fits = fits.of_others(targets.reshape(len(labels), -1))

    def decided(scores: np.ndarray) -> np.ndarray:
        return decided_class(scores.reshape(len(scores), *targets.shape[1:]))

    right = np.stack([(decided(fits.left_out(i)) == labels).mean(axis=0) for i in range(len(l2))])
    chosen = last_best(right)
    tasks = np.arange(labels.shape[1])
    predicted = np.empty((len(new), labels.shape[1]), dtype=np.intp)
    fitted = np.empty(labels.shape[1])
    for i in np.unique(chosen):
        mine = chosen == i
        predicted[:, mine] = decided(fits.predict(new, i))[:, mine]
        fitted[mine] = (decided(fits.fitted(i)) == labels).mean(axis=0)[mine]
    return ManyLabels(predicted, fits.l2[chosen], right[chosen, tasks], fitted)


def last_best(scores: np.ndarray) -> np.ndarray:
    """Index of the highest of `scores` [m, ...] along the path, of equals the last: penalties ascend, so the simplest."""
    best: np.ndarray = len(scores) - 1 - np.argmax(scores[::-1], axis=0)
    return best


def finite_pair(train: RepresentationsLike, test: RepresentationsLike, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Features [image, channel] of a layer for both sets; None, with a NonFiniteWarning, where some are NaN or infinite."""
    pair = layer_pair(train, test, name)
    bad = sum(int((~np.isfinite(X)).sum()) for X in pair)
    if bad:
        warnings.warn(f"no probe of layer '{name}': {bad} of its features are NaN or infinite", NonFiniteWarning, stacklevel=5)
        return None
    return pair
