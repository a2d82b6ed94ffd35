"""Ridge regression of many targets on one feature matrix: one eigendecomposition for all targets
and all penalties.

A control task, a random labelling and a property of an image are all targets on the same features,
and only the targets differ; so Z'Z (or ZZ') is decomposed once and every target costs two thin
products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixer_probe.linear.classifier import decided_class, last_best
from mixer_probe.linear.ridge import Ridge
from mixer_probe.linear.ridge_path import one_hot


@dataclass(frozen=True)
class RidgeFits:
    """Ridge regressions of `targets` [n, k] on standardised features, for every penalty of `l2`
    [m].

    Methods take and return arrays. `projected` [n, r] are the training images in the basis of the
    decomposition."""

    ridge: Ridge
    projected: Tensor
    targets: Tensor
    l2: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, targets: np.ndarray | None, l2: np.ndarray) -> RidgeFits:
        """Fit to features `X` [n, p] and `targets` [n, k], None for targets that follow."""
        T = torch.from_numpy(
            np.empty((len(X), 0)) if targets is None else np.asarray(targets, dtype=np.float64)
        )
        ridge, projected = Ridge.of(X, T, dual=X.shape[1] > X.shape[0])
        return cls(ridge, projected, T, np.asarray(l2, dtype=np.float64))

    def with_targets(self, targets: np.ndarray) -> RidgeFits:
        """Regressions of other `targets` [n, k] on the same features, whose decomposition is
        kept."""
        T = torch.from_numpy(np.asarray(targets, dtype=np.float64))
        return replace(self, ridge=self.ridge.with_targets(self.projected, T), targets=T)

    def project(self, X: np.ndarray) -> np.ndarray:
        """New images `X` [s, p] in the basis of the decomposition [s, r], for `predict`."""
        return np.asarray(self.ridge.project(X).numpy())

    def predict(self, projected: np.ndarray, i: int) -> np.ndarray:
        """Predictions [s, k] for images from `project`, by the fit with penalty `l2[i]`."""
        return np.asarray(
            self.ridge.fitted(torch.from_numpy(projected), torch.from_numpy(self.l2[[i]]))[
                :, 0
            ].numpy()
        )

    def fitted(self, i: int) -> np.ndarray:
        """Predictions [n, k] for the training images by the fit with penalty `l2[i]`."""
        return self.predict(self.projected.numpy(), i)

    def left_out(self, i: int) -> np.ndarray:
        """Predictions [n, k] of each training image by the fit to all others with penalty
        `l2[i]`."""
        return np.asarray(
            self.ridge.left_out(self.projected, self.targets, torch.from_numpy(self.l2[[i]]))[
                :, 0
            ].numpy()
        )


@dataclass(frozen=True)
class ManyLabels:
    """Ridge classifications of t labellings of the same images.

    `predicted` [s, t] for the new images, and for each labelling [t] the penalty chosen by
    leave-one-out accuracy (of equals the largest), that accuracy, and the accuracy on the training
    images themselves."""

    predicted: np.ndarray
    l2: np.ndarray
    left_out_accuracy: np.ndarray
    fitted_accuracy: np.ndarray


def classify(fits: RidgeFits, labels: np.ndarray, new: np.ndarray, classes: int) -> ManyLabels:
    """Ridge classifiers of `labels` [n, t] (0 to `classes` - 1) on the features of `fits`, each
    labelling with its own penalty, for images `new` [s, r] from `fits.project`."""
    targets, l2 = one_hot(torch.from_numpy(labels), classes).numpy(), fits.l2
    fits = fits.with_targets(targets.reshape(len(labels), -1))

    def decided(scores: np.ndarray) -> np.ndarray:
        return decided_class(scores.reshape(len(scores), *targets.shape[1:]))

    right = np.stack([(decided(fits.left_out(i)) == labels).mean(axis=0) for i in range(len(l2))])
    chosen = last_best(right)
    predicted = np.empty((len(new), labels.shape[1]), dtype=np.intp)
    fitted = np.empty(labels.shape[1])
    for i in np.unique(chosen):
        mine = chosen == i
        predicted[:, mine] = decided(fits.predict(new, i))[:, mine]
        fitted[mine] = (decided(fits.fitted(i)) == labels).mean(axis=0)[mine]
    return ManyLabels(predicted, l2[chosen], right[chosen, np.arange(labels.shape[1])], fitted)
