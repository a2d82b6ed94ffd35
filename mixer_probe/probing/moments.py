"""Moments of features by class that add up over batches, processes and machines, and from which ridge probes follow.

A ridge classifier with an intercept needs of its training images only how many there are of each class, the sums of their
features by class, and the sum of x x'. The size of these does not depend on the number of images. They are taken about an
origin near the mean, in float64: moments about 0 lose their digits once the mean is far above the spread. Moments about
different origins are moved to one before they are added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.probing.solution import (
    ColumnScaling,
    LeftOut,
    RidgePath,
    block_of,
    blocks,
    checked_penalties,
    default_l2,
    eigen,
    gram,
    resolution,
)


@dataclass
class _Sums:
    """Sums of features about the origin `shift` [p]: by class [K, p], and of x x' [p, p]."""

    shift: Tensor
    by_class: Tensor
    outer: Tensor

    @classmethod
    def start(cls, shift: Tensor) -> _Sums:
        p = len(shift)
        return cls(shift, shift.new_zeros(0, p), shift.new_zeros(p, p))


@dataclass(frozen=True)
class _Normal:
    """Normal equations of scaled features Z and centred targets T: `gram` Z'Z [p, p], `towards` Z'T [p, k], `intercept` [k]."""

    gram: Tensor
    towards: Tensor
    intercept: Tensor
    scaling: ColumnScaling


@dataclass(frozen=True)
class Solution:
    """One ridge classifier: `coefficients` [p, k] in units of the scaled features, `intercept` [k]."""

    classes: np.ndarray
    scaling: ColumnScaling
    coefficients: Tensor
    intercept: Tensor


class RidgeMoments:
    """Everything a ridge classifier needs of any number of images, in O(p^2) memory: `update`, `merge`, `compute`."""

    def __init__(self) -> None:
        self.classes: np.ndarray = np.zeros(0, dtype=np.int64)
        self.counts: np.ndarray = np.zeros(0)
        # The smallest relative difference that the features can show.
        self._eps = 0.0
        self._sums: _Sums | None = None

    @property
    def n(self) -> int:
        """Images so far."""
        return int(self.counts.sum())

    @property
    def p(self) -> int | None:
        """Features; None before the first batch."""
        return None if self._sums is None else len(self._sums.shift)

    def update(self, X: Any, y: Any) -> None:
        """Add features `X` [n, p], an array or a tensor on any device, and their classes `y` [n].

        Raises MeasureError for other shapes than those, or another number of features than before."""
        y = np.asarray(y)
        self._check(X, y)
        if not len(y):
            return
        self._eps = max(self._eps, resolution(X))
        for rows in blocks(len(y), X.shape[1]):
            self._add(block_of(X, rows, None if self._sums is None else self._sums.shift.device), y[rows])

    def _check(self, X: Any, y: np.ndarray) -> None:
        if len(X.shape) != 2 or y.shape != (X.shape[0],):
            raise MeasureError(f"features [n, p] and classes [n] are needed, got shapes {tuple(X.shape)} and {y.shape}")
        if self.p not in (None, X.shape[1]):
            raise MeasureError(f"{X.shape[1]} features here and {self.p} before: all batches must have the same")

    def _add(self, X: Tensor, y: np.ndarray) -> None:
        sums = self._sums = self._sums or _Sums.start(X.mean(0))
        places = self._places(np.unique(y), sums)
        labels = places[np.unique(y, return_inverse=True)[1]]
        X -= sums.shift
        sums.outer += gram(X)
        sums.by_class.index_add_(0, torch.from_numpy(labels).to(X.device), X)
        self.counts += np.bincount(labels, minlength=len(self.classes))

    def _places(self, classes: np.ndarray, sums: _Sums) -> np.ndarray:
        """Where `classes` are among those known, after room was made for new ones."""
        if not np.isin(classes, self.classes).all():
            known, self.classes = self.classes, np.union1d(self.classes, classes) if len(self.classes) else classes
            places = np.searchsorted(self.classes, known) if len(known) else np.zeros(0, dtype=np.int64)
            counts, by_class = np.zeros(len(self.classes)), sums.outer.new_zeros(len(self.classes), len(sums.shift))
            counts[places], by_class[torch.from_numpy(places)] = self.counts, sums.by_class
            self.counts, sums.by_class = counts, by_class
        return np.searchsorted(self.classes, classes)

    def merge(self, other: RidgeMoments) -> None:
        """Add what `other` has seen, as if its batches had come here; `other` stays as it is.

        Raises MeasureError if it has another number of features."""
        if other._sums is None:
            return
        sums = self._sums = self._sums or _Sums.start(other._sums.shift.clone())
        if self.p != other.p:
            raise MeasureError(f"moments of {other.p} features cannot be merged with those of {self.p}")
        places = self._places(other.classes, sums)
        shift, by_class, outer = (part.to(sums.shift.device) for part in vars(other._sums).values())
        step, counts = shift - sums.shift, torch.from_numpy(other.counts).to(shift.device)
        # (x - a) = (x - b) + (b - a), expanded.
        total = by_class.sum(0)
        sums.outer += outer
        sums.outer.addr_(step, total + other.n * step).addr_(total, step)
        sums.by_class[torch.from_numpy(places)] += by_class + counts[:, None] * step
        self.counts[places] += other.counts
        self._eps = max(self._eps, other._eps)

    def compute(self, l2: Any = None, *, standardize: bool = True, left_out: tuple[Any, Any] | None = None) -> RidgePath:
        """Ridge classifiers of all images so far for every penalty of `l2` [m], by default `default_l2`; more may follow.

        `left_out` are features [s, p] and classes [s] of some of these images: the path can leave each of them out of the fit
        to all, and so choose a penalty. Raises MeasureError for penalties that are not positive, for fewer than two classes and
        for features that are NaN or infinite."""
        path = self.fit(checked_penalties(default_l2(self.n) if l2 is None else l2), standardize)
        return path if left_out is None else leaving_out(path, *left_out)

    def fit(self, l2: np.ndarray, standardize: bool) -> RidgePath:
        """As `compute`, for penalties [m] that may be 0 and with no image to leave out."""
        normal = self._normal(standardize)
        values, vectors = eigen(normal.gram)
        return RidgePath(
            l2=l2,
            classes=self.classes,
            scaling=normal.scaling,
            standardize=standardize,
            n=self.n,
            basis=vectors,
            eigenvalues=values,
            targets=vectors.T @ normal.towards,
            intercept=normal.intercept,
        )

    def solve(self, l2: float, standardize: bool) -> Solution:
        """The classifier for one penalty, from a Cholesky factor, in a fraction of the time of a path.

        Where the factor does not exist, as for l2 = 0 and features that depend on each other, the path has the solution of
        smallest norm. Raises MeasureError as `compute`."""
        normal = self._normal(standardize)
        factor, failed = torch.linalg.cholesky_ex(normal.gram + l2 * torch.eye(len(normal.gram)).to(normal.gram))
        # An l2 that rounding drowns leaves a factor of noise.
        if failed or l2 <= len(normal.gram) * np.finfo(float).eps * float(normal.gram.diagonal().sum()):
            path = self.fit(np.array([l2]), standardize)
            return Solution(path.classes, path.scaling, path.coefficients(l2), path.intercept)
        return Solution(self.classes, normal.scaling, torch.cholesky_solve(normal.towards, factor), normal.intercept)

    def _normal(self, standardize: bool) -> _Normal:
        check_two(self.classes)
        assert self._sums is not None
        sums, n = self._sums, self.n
        counts = torch.from_numpy(self.counts).to(sums.shift.device)
        offset = sums.by_class.sum(0) / n
        scatter = torch.addr(sums.outer, offset, offset, alpha=-n)
        if not torch.isfinite(scatter).all():
            raise MeasureError("the features hold values that are NaN or infinite")
        scaling = ColumnScaling.of(sums.shift + offset, scatter.diagonal() / n, standardize, self._eps)
        # T is 2 (one-hot) - 1 and Z is centred, so Z'T is twice the sums of z by class.
        towards = 2 * (torch.addr(sums.by_class, counts, offset, alpha=-1) / scaling.scale).T
        first = 1 if len(self.classes) == 2 else 0
        gram = scatter.div_(scaling.scale).div_(scaling.scale[:, None])
        return _Normal(gram, towards[:, first:], (2 * counts / n - 1)[first:], scaling)


def leaving_out(path: RidgePath, X: Any, y: Any) -> RidgePath:
    """The same path, which may leave out the training images with features `X` [s, p] and classes `y` [s]."""
    device = path.basis.device
    parts = [path.scaling.apply(block_of(X, rows, device)) @ path.basis for rows in blocks(len(y), X.shape[1])]
    labels = torch.from_numpy(np.searchsorted(path.classes, np.asarray(y))).to(device)
    return replace(path, left=LeftOut(torch.cat(parts), labels))


def check_two(classes: np.ndarray) -> None:
    """Raise MeasureError unless there are two classes or more."""
    if len(classes) < 2:
        found = f"there is one class: {classes[0]}" if len(classes) else "there are none"
        raise MeasureError(f"a probe needs at least two classes, but {found}")
