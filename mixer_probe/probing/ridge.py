"""Ridge classification in closed form: every penalty and every left-out image from one eigendecomposition.

The targets are one-hot with +1 and -1, as in scikit-learn's RidgeClassifier and big_vision's few-shot
protocol; the intercept is not penalised. The primal form has the eigenvalues of Z'Z [p, p] from moments that are
taken block by block, so that no scaled copy of the features is made; the dual form those of ZZ' [n, n].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.probing.labels import stratified
from mixer_probe.probing.linear import LinearClassifier
from mixer_probe.probing.moments import RidgeMoments, Solution, check_two, leaving_out
from mixer_probe.probing.solution import (
    LeftOut,
    RidgePath,
    block_of,
    checked_penalties,
    column_scaling,
    decomposed,
    default_l2,
    one_hot,
)

Form = Literal["auto", "primal", "dual"]

# Images that are left out in turn: accuracy on 5,000 of more chooses among penalties just as well, in a fraction of the time.
LEFT_OUT = 5000


class RidgeProbe(LinearClassifier):
    """Linear classifier by ridge regression on one-hot targets of +1 and -1; a scikit-learn estimator.

    Minimises |T - Z W - b|^2 + l2 |W|^2 over `coef_` W and `intercept_` b, where Z are the features
    standardised by the mean and standard deviation of the training images (`standardize=False`: centred
    only): scikit-learn's Ridge(alpha=l2) on Z. `l2=0` gives the least-squares solution of smallest norm.
    A list of penalties, or None for `default_l2`, is a path: the penalty with the highest leave-one-out
    accuracy is taken, of equals the largest. `form` picks the p x p ("primal") or n x n ("dual") equations.

    After `fit`: `classes_` [k], `coef_` [k, p] (one row for two classes) in units of the standardised
    features, `intercept_`, `mean_` and `scale_` [p] (infinite for constant columns), `l2_`, `n_features_in_`."""

    def __init__(self, l2: float | Sequence[float] | None = 1.0, *, standardize: bool = True, form: Form = "auto") -> None:
        self.l2 = l2
        self.standardize = standardize
        self.form = form

    def fit(self, X: Any, y: Any) -> RidgeProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and l2 < 0."""
        X, y = _checked(self, X, y)
        if self.l2 is None or np.ndim(self.l2):
            path = _fit_path(
                X, y, default_l2(len(y)) if self.l2 is None else checked_penalties(self.l2), self.standardize, self.form
            )
            return self._take(path, path.best_l2())
        if not self.l2 >= 0:  # type: ignore[operator]
            raise MeasureError(f"l2 must not be negative, got {self.l2}")
        l2 = float(self.l2)  # type: ignore[arg-type]
        if _is_dual(X, self.form):
            return self._take(_fit_path(X, y, np.array([l2]), self.standardize, self.form, left_out=0), l2)
        return self._keep(_moments(X, y).solve(l2, self.standardize), l2)

    def _take(self, path: RidgePath, l2: float) -> RidgeProbe:
        return self._keep(Solution(path.classes, path.scaling, path.coefficients(l2), path.intercept), l2)

    def _keep(self, found: Solution, l2: float) -> RidgeProbe:
        self.classes_ = found.classes
        self.mean_, self.scale_ = found.scaling.mean.cpu().numpy(), found.scaling.scale.cpu().numpy()
        self.coef_ = found.coefficients.T.cpu().numpy()
        self.intercept_ = found.intercept.cpu().numpy()
        self.l2_ = l2
        self.n_features_in_ = len(self.mean_)
        return self


def probe_of(path: RidgePath, l2: float) -> RidgeProbe:
    """The fitted classifier for one penalty, on the path or off it."""
    return RidgeProbe(l2, standardize=path.standardize)._take(path, l2)


@checked(MeasureError)
def ridge_path(
    X: Any,
    y: Any,
    l2: Sequence[float] | np.ndarray,
    *,
    standardize: bool = True,
    form: Form = "auto",
    left_out: int = LEFT_OUT,
) -> RidgePath:
    """Ridge classifiers for features `X` [n, p] and classes `y` [n], for every penalty of `l2` at once.

    At most `left_out` of the images, a stratified draw, can be left out of the fit; no interval or test depends on the draw.

    Raises MeasureError if a penalty is not positive (an interpolating fit has no leave-one-out residual) or
    there is one class, and ValueError for input that scikit-learn refuses."""
    penalties = checked_penalties(l2)
    X, y = _checked(RidgeProbe(), X, y)
    return _fit_path(X, y, penalties, standardize, form, left_out)


def _checked(probe: RidgeProbe, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    # Float32 stays as it is, and is made wider block by block.
    X, y = validate_data(probe, X, y, dtype=[np.float64, np.float32])
    check_classification_targets(y)
    check_two(np.unique(y))
    return X, y


def _fit_path(X: np.ndarray, y: np.ndarray, l2: np.ndarray, standardize: bool, form: Form, left_out: int = LEFT_OUT) -> RidgePath:
    rows = stratified(y, left_out) if left_out < len(y) else slice(None)
    if _is_dual(X, form):
        return _dual(X, y, l2, standardize, rows)
    path = _moments(X, y).fit(l2, standardize)
    return leaving_out(path, X[rows], y[rows]) if left_out else path


def _is_dual(X: np.ndarray, form: Form) -> bool:
    return form == "dual" or (form == "auto" and X.shape[1] > X.shape[0])


def _moments(X: np.ndarray, y: np.ndarray) -> RidgeMoments:
    moments = RidgeMoments()
    moments.update(X, y)
    return moments


def _dual(X: np.ndarray, y: np.ndarray, l2: np.ndarray, standardize: bool, rows: slice | np.ndarray) -> RidgePath:
    classes, indices = np.unique(y, return_inverse=True)
    labels = torch.from_numpy(indices)
    Z, targets = block_of(X, slice(None)), one_hot(labels, len(classes))
    intercept, scaling = targets.mean(0), column_scaling(X, standardize, Z.device)
    values, basis, projected = decomposed(scaling.apply(Z), dual=True)
    return RidgePath(
        l2=l2,
        classes=classes,
        scaling=scaling,
        standardize=standardize,
        n=len(y),
        basis=basis,
        eigenvalues=values,
        targets=projected.T @ (targets - intercept),
        intercept=intercept,
        left=LeftOut(projected[rows], labels[rows]),
    )
