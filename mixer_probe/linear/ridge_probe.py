"""The ridge classifier as a scikit-learn estimator, and its whole path.

The intercept is not penalised. The primal form has the eigenvalues of Z'Z [p, p] from moments that
are taken block by block, so that no scaled copy of the features is made; the dual form those of ZZ'
[n, n].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.rows import Rows
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import LinearClassifier, checked_classes
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import Ridge, checked_penalties, default_l2
from mixer_probe.linear.ridge_path import LeftOut, RidgePath, Solution, one_hot
from mixer_probe.linear.stratification import stratified

Form = Literal["auto", "primal", "dual"]

# Images that are left out in turn: accuracy on 5,000 of more chooses among penalties just as well,
# in a fraction of the time.
LEFT_OUT = 5000
# Float32 stays as it is, and becomes float64 block by block.
_DTYPES = [np.float64, np.float32]


class RidgeProbe(LinearClassifier):
    """Linear classifier by ridge regression on one-hot targets of +1 and -1; a scikit-learn
    estimator.

    Minimises |T - Z W - b|^2 + l2 |W|^2 over `coef_` W and `intercept_` b, where Z are the features
    standardised by the mean and standard deviation of the training images (`standardize=False`:
    centred only): scikit-learn's Ridge(alpha=l2) on Z. `l2=0` gives the least-squares solution of
    smallest norm. A list of penalties, or None for `default_l2`, is a path: the penalty with the
    highest leave-one-out accuracy is taken, of equals the largest. `form` picks the p x p
    ("primal") or n x n ("dual") equations.

    After `fit`: `classes_` [k], `coef_` [k, p] (one row for two classes) in units of the
    standardised features, `intercept_`, `mean_` and `scale_` [p] (infinite for constant columns),
    `l2_`, `n_features_in_`."""

    def __init__(
        self,
        l2: float | Sequence[float] | None = 1.0,
        *,
        standardize: bool = True,
        form: Form = "auto",
    ) -> None:
        self.l2 = l2
        self.standardize = standardize
        self.form = form

    def fit(self, X: Any, y: Any) -> RidgeProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and l2
        < 0."""
        X, y = checked_classes(self, X, y, _DTYPES)
        if self.l2 is None or np.ndim(self.l2):
            penalties = default_l2(len(y)) if self.l2 is None else checked_penalties(self.l2)
            path = _path(X, y, penalties, self.standardize, self.form)
            l2 = path.best_l2()
            return self.take(path.solution(l2), l2)
        if not self.l2 >= 0:  # type: ignore[operator]
            raise MeasureError(f"l2 must not be negative, got {self.l2}")
        l2 = float(self.l2)  # type: ignore[arg-type]
        if _is_dual(X, self.form):
            path = _path(X, y, np.array([l2]), self.standardize, self.form, left_out=0)
            return self.take(path.solution(l2), l2)
        moments = RidgeMoments()
        moments.update(X, y)
        return self.take(moments.solve(l2, self.standardize), l2)

    @classmethod
    def of(cls, path: RidgePath, l2: float) -> RidgeProbe:
        """The fitted classifier of a path for one penalty, on the path or off it."""
        return cls(l2, standardize=path.standardize).take(path.solution(l2), l2)

    def take(self, found: Solution, l2: float) -> RidgeProbe:
        """This estimator, fitted: with the attributes of a solution for the penalty `l2`."""
        self.classes_ = found.classes
        self.mean_, self.scale_ = (
            found.scaling.mean.cpu().numpy(),
            found.scaling.scale.cpu().numpy(),
        )
        self.coef_ = found.coefficients.T.cpu().numpy()
        self.intercept_ = found.intercept.cpu().numpy()
        self.l2_ = l2
        self.n_features_in_ = len(self.mean_)
        return self


@checked(MeasureError)
def ridge_path(
    X: Any,
    y: Any,
    l2: Sequence[float] | np.ndarray | None = None,
    *,
    standardize: bool = True,
    form: Form = "auto",
    left_out: int = LEFT_OUT,
) -> RidgePath:
    """Ridge classifiers for features `X` [n, p], an array or `Rows` of one, and classes `y` [n],
    for every penalty of `l2` at once, by default `default_l2`. Of p <= n features a block of images
    is in memory at a time.

    At most `left_out` of the images, a stratified draw, can be left out of the fit; no interval or
    test depends on the draw.

    Raises MeasureError if a penalty is not positive (an interpolating fit has no leave-one-out
    residual) or there is one class, and ValueError for input that scikit-learn refuses."""
    penalties = None if l2 is None else checked_penalties(l2)
    X, y = checked_classes(RidgeProbe(), X, y, _DTYPES, by_rows=True)
    return _path(
        X, y, default_l2(len(y)) if penalties is None else penalties, standardize, form, left_out
    )


def _is_dual(X: Any, form: Form) -> bool:
    return form == "dual" or (form == "auto" and X.shape[1] > X.shape[0])


def _path(
    X: Any,
    y: np.ndarray,
    l2: np.ndarray,
    standardize: bool,
    form: Form,
    left_out: int = LEFT_OUT,
) -> RidgePath:
    rows = stratified(y, left_out) if left_out < len(y) else None
    left, labels = (X, y) if rows is None else (Rows(X, rows), y[rows])
    if not _is_dual(X, form):
        moments = RidgeMoments()
        moments.update(X, y)
        path = moments.fit(l2, standardize)
        return path.leaving_out(left, labels) if left_out else path
    classes, indices = np.unique(y, return_inverse=True)
    every = torch.from_numpy(indices)
    ridge, projected = Ridge.of(X, one_hot(every, len(classes)), standardize, dual=True)
    chosen = slice(None) if rows is None else rows
    kept = LeftOut(every[chosen], projected=projected[chosen])
    return RidgePath(ridge, l2, classes, standardize, kept)
