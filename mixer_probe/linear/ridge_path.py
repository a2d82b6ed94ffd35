"""Ridge classifiers of one training set for every penalty, each image left out in closed form.

The targets are one-hot with +1 and -1, as in scikit-learn's RidgeClassifier and big_vision's
few-shot protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import at_once
from mixer_probe.linear.classifier import PenaltyPath, decided_class, last_best
from mixer_probe.linear.ridge import Ridge
from mixer_probe.linear.scaling import ColumnScaling, block_of, blocks


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """+1 for the class and -1 elsewhere [..., k], float64; one column for two classes, which mirror
    each other."""
    hot = torch.full((*labels.shape, classes), -1.0, dtype=torch.float64, device=labels.device)
    hot.scatter_(-1, labels[..., None], 1.0)
    return hot[..., 1:] if classes == 2 else hot


def argmax(scores: Tensor) -> np.ndarray:
    """`decided_class` of scores [..., k] on any device."""
    # On the CPU NumPy is several times faster here.
    if scores.device.type == "cpu":
        return decided_class(scores.numpy())
    best = scores[..., 0] > 0 if scores.shape[-1] == 1 else scores.argmax(-1)
    return np.asarray(best.long().cpu().numpy())


class Solution(NamedTuple):
    """One ridge classifier: `coefficients` [p, k] in units of the scaled features, `intercept`
    [k]."""

    classes: np.ndarray
    scaling: ColumnScaling
    coefficients: Tensor
    intercept: Tensor


@dataclass(frozen=True)
class LeftOut:
    """Training images that can be left out of the fit: their labels or indices [s], and either
    features [s, p], which are projected when they are asked for, or B'z of each [s, r]."""

    labels: Tensor
    features: Any = None
    projected: Tensor | None = None

    def project(self, ridge: Ridge, rows: slice) -> Tensor:
        """B'z of some of them."""
        if self.projected is not None:
            return self.projected[rows]
        return ridge.project(self.features, rows)


@dataclass(frozen=True)
class RidgePath(PenaltyPath):
    """Ridge classifiers of one training set for every penalty `l2` [m]; a `ProbePath`.

    `ridge` has one target per class, one in all for two classes, whose columns mirror each other.
    The penalty is chosen by leave-one-out on the images `left`."""

    ridge: Ridge
    l2: np.ndarray
    classes: np.ndarray
    standardize: bool
    left: LeftOut | None = None

    def scores(self, X: Any) -> np.ndarray:
        """Scores [m, n, K] of new images `X` [n, p]; those of two classes are opposite."""
        parts = [
            torch.cat([-s, s], dim=-1) if len(self.classes) == 2 else s
            for s in self._score_blocks(X)
        ]
        return np.concatenate([part.transpose(0, 1).cpu().numpy() for part in parts], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]."""
        return np.asarray(
            self.classes[np.concatenate([argmax(scores) for scores in self._score_blocks(X)]).T]
        )

    def left_out_accuracy(self) -> np.ndarray:
        """Leave-one-out accuracy [m] on the images that can be left out.

        Raises MeasureError if no image was kept for that."""
        left, l2 = self._left(), self._penalties
        right = np.zeros(len(self.l2))
        for rows in self._blocks(len(left.labels)):
            projected, labels = left.project(self.ridge, rows), left.labels[rows]
            # Left-out scores times 1 - h, which does not change their order: f - h t.
            scores, leverage = self.ridge.fitted(projected, l2), self.ridge.leverage(projected, l2)
            if scores.shape[-1] == 1:
                scores.sub_((leverage * (2.0 * labels - 1)[:, None])[:, :, None])
            else:
                # f - h t is f + h but for the true class, where it is f - h: 2 h less beside the
                # others.
                true = labels[:, None, None].expand(-1, scores.shape[1], 1)
                scores.scatter_add_(2, true, -2 * leverage[:, :, None])
            right += (argmax(scores) == labels.cpu().numpy()[:, None]).sum(axis=0)
        return right / len(left.labels)

    leave_one_out_accuracy = left_out_accuracy

    def leave_one_out_scores(self, l2: float) -> np.ndarray:
        """Scores [s, k] by the fits to all others, with k = 1 for two classes (positive for the
        second).

        Raises MeasureError if no image was kept for that."""
        left, penalty = self._left(), self.ridge.eigenvalues.new_tensor([l2])
        found = []
        for rows in self._blocks(len(left.labels)):
            targets = one_hot(left.labels[rows], len(self.classes))
            found.append(self.ridge.left_out(left.project(self.ridge, rows), targets, penalty))
        return np.asarray(torch.cat(found)[:, 0].cpu().numpy())

    def leaving_out(self, X: Any, y: Any) -> RidgePath:
        """The same path, which can leave out the training images with features `X` [s, p] and
        classes `y` [s]."""
        labels = torch.from_numpy(np.searchsorted(self.classes, np.asarray(y))).to(
            self.ridge.basis.device
        )
        return replace(self, left=LeftOut(labels, X))

    def best_l2(self) -> float:
        """The penalty with the highest left-out accuracy; of equals the largest, the simplest
        model."""
        ascending = np.argsort(self.l2)
        return float(self.l2[ascending][last_best(self.left_out_accuracy()[ascending])])

    def solution(self, l2: float) -> Solution:
        """Weights and intercept for one penalty, on the path or off it."""
        return Solution(
            self.classes, self.ridge.scaling, self.ridge.coefficients(l2), self.ridge.intercept
        )

    def _left(self) -> LeftOut:
        if self.left is None:
            raise MeasureError("no training images were kept to be held out: give some as left_out")
        return self.left

    def _blocks(self, n: int) -> Iterator[slice]:
        return blocks(
            n, max(len(self.l2) * len(self.ridge.intercept), len(self.ridge.scaling.mean))
        )

    @property
    def _penalties(self) -> Tensor:
        return torch.from_numpy(self.l2).to(self.ridge.eigenvalues)

    @cached_property
    def _weights(self) -> Tensor | None:
        """W of all penalties [p, m k]; None where that is large and larger than the basis."""
        p, r = self.ridge.basis.shape
        small = len(self.l2) * len(self.ridge.intercept) <= at_once(8 * p, least=r)
        return self.ridge.basis @ self.ridge.solved(self._penalties).flatten(1) if small else None

    def _score_blocks(self, X: Any) -> Iterator[Tensor]:
        """Scores [b, m, k] of blocks of new images `X` [n, p]."""
        for rows in self._blocks(len(X)):
            if self._weights is None:
                # Features much wider than the training set is large are projected first.
                yield self.ridge.fitted(self.ridge.project(X, rows), self._penalties)
            else:
                Z = self.ridge.scaling.apply(block_of(X, rows, self.ridge.basis.device))
                yield (Z @ self._weights).view(len(Z), len(self.l2), -1).add_(self.ridge.intercept)
