"""Moments of features by class that add up over batches, processes and machines, and from which
ridge classifiers follow.

A ridge classifier with an intercept needs of its training images only their number per class, the
sums of their features by class, and the sum of x x'. The size of these does not depend on the
number of images. They are taken about an origin near the mean, in float64: moments about 0 lose
their digits once the mean is far above the spread. Moments about different origins are moved to one
before they are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import MeasureError
from mixer_probe.linear.classifier import check_two
from mixer_probe.linear.ridge import Ridge, checked_penalties, default_l2, eigen, gram
from mixer_probe.linear.ridge_path import RidgePath, Solution
from mixer_probe.linear.scaling import ColumnScaling, block_of, blocks, resolution


class _NormalEquations(NamedTuple):
    """Of scaled features Z and centred targets T: `gram` Z'Z [p, p], `targets` Z'T [p, k], and the
    `intercept` [k]."""

    gram: Tensor
    targets: Tensor
    intercept: Tensor
    scaling: ColumnScaling


@dataclass(eq=False)
class RidgeMoments(Accumulator):
    """Everything that a ridge classifier needs of any number of images, in O(p^2) memory.

    Sums are about the origin `_shift`, the mean of the first block: of features by class, and of x
    x'."""

    classes: Annotated[np.ndarray, "class"] = state_field(partial(np.zeros, 0, np.int64))
    counts: Annotated[np.ndarray, "class"] = state_field(partial(np.zeros, 0))
    # The smallest relative difference that the features can show.
    _eps: float = state_field(0.0)
    _shift: Annotated[Tensor | None, "p"] = state_field(None)
    _by_class: Annotated[Tensor, "class", "p"] = state_field(partial(torch.empty, 0, 0))
    _outer: Annotated[Tensor, "p", "p"] = state_field(partial(torch.empty, 0, 0))

    @property
    def n(self) -> int:
        """Images so far."""
        return int(self.counts.sum())

    @property
    def p(self) -> int | None:
        """Features; None before the first batch."""
        return None if self._shift is None else len(self._shift)

    def update(self, X: Any, y: Any) -> None:
        """Add features `X` [n, p], an array or a tensor on any device, and their classes `y` [n].

        Raises MeasureError for other shapes than those, or another number of features than
        before."""
        y = np.asarray(y)
        if len(X.shape) != 2 or y.shape != (X.shape[0],):
            raise MeasureError(
                f"features [n, p] and classes [n] are needed, got shapes {tuple(X.shape)} and "
                f"{y.shape}"
            )
        if self.p not in (None, X.shape[1]):
            raise MeasureError(
                f"{X.shape[1]} features here and {self.p} before: all batches must have the same"
            )
        if not len(y):
            return
        self._eps = max(self._eps, resolution(X))
        for rows in blocks(len(y), X.shape[1]):
            block = block_of(X, rows, None if self._shift is None else self._shift.device)
            classes, indices = np.unique(y[rows], return_inverse=True)
            shift = self._start(block.mean(0)) if self._shift is None else self._shift
            labels = self._index(classes)[indices]
            block -= shift
            self._outer += gram(block)
            self._by_class.index_add_(0, torch.from_numpy(labels).to(block.device), block)
            self.counts += np.bincount(labels, minlength=len(self.classes))

    def _start(self, shift: Tensor) -> Tensor:
        """The origin, for moments that are still empty."""
        self._shift, self._by_class = shift, shift.new_zeros(0, len(shift))
        self._outer = shift.new_zeros(len(shift), len(shift))
        return shift

    def _index(self, classes: np.ndarray) -> np.ndarray:
        """Indices of `classes` among those known, which are extended by new ones."""
        if not np.isin(classes, self.classes).all():
            known, self.classes = (
                self.classes,
                np.union1d(self.classes, classes) if len(self.classes) else classes,
            )
            rows = (
                np.searchsorted(self.classes, known) if len(known) else np.zeros(0, dtype=np.int64)
            )
            counts, by_class = (
                np.zeros(len(self.classes)),
                self._outer.new_zeros(len(self.classes), len(self._outer)),
            )
            counts[rows], by_class[torch.from_numpy(rows)] = self.counts, self._by_class
            self.counts, self._by_class = counts, by_class
        return np.searchsorted(self.classes, classes)

    def merge(self, other: RidgeMoments) -> None:
        """Add the images of `other`, as if its batches had come here; `other` stays as it is.

        Raises MeasureError if it has another number of features."""
        if other._shift is None:
            return
        shift = self._start(other._shift.clone()) if self._shift is None else self._shift
        if self.p != other.p:
            raise MeasureError(
                f"moments of {other.p} features cannot be merged with those of {self.p}"
            )
        rows = self._index(other.classes)
        origin, by_class, outer = (
            part.to(shift.device) for part in (other._shift, other._by_class, other._outer)
        )
        step, counts = origin - shift, torch.from_numpy(other.counts).to(shift.device)
        # (x - a) = (x - b) + (b - a), expanded.
        total = by_class.sum(0)
        self._outer += outer
        self._outer.addr_(step, total + other.n * step).addr_(total, step)
        self._by_class[torch.from_numpy(rows)] += by_class + counts[:, None] * step
        self.counts[rows] += other.counts
        self._eps = max(self._eps, other._eps)

    def take(self, features: np.ndarray) -> RidgeMoments:
        """The moments of some of the features, by index."""
        found, index = RidgeMoments(), torch.from_numpy(features)
        found.classes, found.counts, found._eps = self.classes, self.counts, self._eps
        if self._shift is not None:
            index = index.to(self._shift.device)
            found._shift, found._by_class = self._shift[index], self._by_class[:, index]
            found._outer = self._outer[index][:, index]
        return found

    def compute(
        self, l2: Any = None, *, standardize: bool = True, left_out: tuple[Any, Any] | None = None
    ) -> RidgePath:
        """Ridge classifiers of all images so far for every penalty of `l2` [m], by default
        `default_l2`; more may follow.

        `left_out` are features [s, p] and classes [s] of some of these images: the path can leave
        each of them out of the fit to all, and so choose a penalty. Raises MeasureError for
        penalties that are not positive, for fewer than two classes and for features that are NaN or
        infinite."""
        path = self.fit(checked_penalties(default_l2(self.n) if l2 is None else l2), standardize)
        return path if left_out is None else path.leaving_out(*left_out)

    def fit(self, l2: np.ndarray, standardize: bool) -> RidgePath:
        """As `compute`, for penalties [m] that may be 0 and with no image to leave out."""
        normal = self._normal_equations(standardize)
        values, vectors = eigen(normal.gram)
        ridge = Ridge(
            normal.scaling, vectors, values, vectors.T @ normal.targets, normal.intercept, self.n
        )
        return RidgePath(ridge, l2, self.classes, standardize)

    def solve(self, l2: float, standardize: bool) -> Solution:
        """The classifier for one penalty, from a Cholesky factor, in a fraction of the time of a
        path.

        Where the factor does not exist, as for l2 = 0 and features that depend on each other, the
        path has the solution of smallest norm. Raises MeasureError as `compute`."""
        normal = self._normal_equations(standardize)
        factor, failed = torch.linalg.cholesky_ex(
            normal.gram + l2 * torch.eye(len(normal.gram)).to(normal.gram)
        )
        # An l2 that rounding drowns leaves a factor of noise.
        if failed or l2 <= len(normal.gram) * np.finfo(float).eps * float(
            normal.gram.diagonal().sum()
        ):
            return self.fit(np.array([l2]), standardize).solution(l2)
        return Solution(
            self.classes,
            normal.scaling,
            torch.cholesky_solve(normal.targets, factor),
            normal.intercept,
        )

    def _normal_equations(self, standardize: bool) -> _NormalEquations:
        check_two(self.classes)
        assert self._shift is not None
        n, counts = self.n, torch.from_numpy(self.counts).to(self._shift.device)
        offset = self._by_class.sum(0) / n
        scatter = torch.addr(self._outer, offset, offset, alpha=-n)
        if not torch.isfinite(scatter).all():
            raise MeasureError("the features hold values that are NaN or infinite")
        scaling = ColumnScaling.of(
            self._shift + offset, scatter.diagonal() / n, standardize, self._eps
        )
        # T is 2 (one-hot) - 1 and Z is centred, so Z'T is twice the sums of z by class.
        targets = 2 * (torch.addr(self._by_class, counts, offset, alpha=-1) / scaling.scale).T
        first = 1 if len(self.classes) == 2 else 0
        scatter.div_(scaling.scale).div_(scaling.scale[:, None])
        return _NormalEquations(scatter, targets[:, first:], (2 * counts / n - 1)[first:], scaling)
