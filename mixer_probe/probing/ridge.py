"""Ridge classification in closed form: every penalty and every left-out image from one eigendecomposition.

The targets are one-hot with +1 and -1, as in scikit-learn's RidgeClassifier and big_vision's few-shot
protocol; the intercept is not penalised. With Z [n, p] the standardised features and T the centred targets,
Z'Z = Q diag(e) Q' gives W(l2) = Q diag(1 / (e + l2)) Q'Z'T for all l2 at once, and the leave-one-out
residuals are r_i / (1 - h_i) with the residuals r and the leverages h of the fit on all images (Allen 1974,
PRESS; Hastie, Tibshirani and Friedman 2009, eq. 7.52). For p > n the same follows from ZZ'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import linalg
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mixer_probe.errors import MeasureError

Form = Literal["auto", "primal", "dual"]


@dataclass(frozen=True)
class Scaling:
    """Column means and scales [p] of the training images.

    The scale of a constant column is infinite, so that it becomes 0 for new images too."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, standardize: bool) -> Scaling:
        """Means of `X` [n, p], and its standard deviations (over n) or ones."""
        mean = X.mean(axis=0)
        deviation = X.std(axis=0)
        # Equal numbers have a deviation of some units in the last place of their mean.
        constant = deviation <= 10 * np.finfo(float).eps * np.abs(mean)
        scale = deviation if standardize else np.ones_like(deviation)
        return cls(mean, np.where(constant, np.inf, scale))

    def apply(self, X: np.ndarray) -> np.ndarray:
        """`X` [n, p] centred and scaled."""
        scaled: np.ndarray = (X - self.mean) / self.scale
        return scaled


@dataclass(frozen=True)
class Decomposition:
    """Ridge regression of centred targets on centred features for any l2, from one eigendecomposition.

    For r nonzero eigenvalues: W(l2) = `basis` [p, r] diag(1 / (`eigenvalues` + l2)) `targets` [r, k]; the fit
    on the training images has `fitted` [n, r] in place of the basis, and its leverages are
    `leverage` [n, r] times 1 / (eigenvalues + l2)."""

    basis: np.ndarray
    eigenvalues: np.ndarray
    targets: np.ndarray
    fitted: np.ndarray
    leverage: np.ndarray

    @classmethod
    def of(cls, Z: np.ndarray, T: np.ndarray, form: Form = "auto") -> Decomposition:
        """Decompose Z'Z (primal) or ZZ' (dual), by default the smaller; Z [n, p], T [n, k]."""
        dual = form == "dual" or (form == "auto" and Z.shape[1] > Z.shape[0])
        values, vectors = _eigen(Z @ Z.T if dual else Z.T @ Z)
        if dual:
            fitted = vectors * values
            return cls(Z.T @ vectors, values, vectors.T @ T, fitted, vectors * fitted)
        fitted = Z @ vectors
        return cls(vectors, values, fitted.T @ T, fitted, fitted**2)

    def coefficients(self, l2: float) -> np.ndarray:
        """W(l2) [p, k]."""
        weights: np.ndarray = self.basis @ self.solved(l2)
        return weights

    def solved(self, l2: float) -> np.ndarray:
        """diag(1 / (eigenvalues + l2)) targets, [r, k]."""
        solved: np.ndarray = self.targets / (self.eigenvalues + l2)[:, None]
        return solved


def _eigen(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [r] and eigenvectors [d, r] of a Gram matrix [d, d], without rounded zeros."""
    values, vectors = linalg.eigh(gram)
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
    return values[keep], vectors[:, keep]


class RidgeProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear classifier by ridge regression on one-hot targets of +1 and -1; a scikit-learn estimator.

    Minimises |T - Z W - b|^2 + l2 |W|^2 over `coef_` W and `intercept_` b, where Z are the features
    standardised by the mean and standard deviation of the training images (`standardize=False`: centred
    only): scikit-learn's Ridge(alpha=l2) on Z. `l2=0` gives the least-squares solution of smallest norm.
    `form` picks the p x p ("primal") or n x n ("dual") equations.

    After `fit`: `classes_` [k], `coef_` [k, p] (one row for two classes) in units of the standardised
    features, `intercept_`, `mean_` and `scale_` [p] (infinite for constant columns), `n_features_in_`."""

    def __init__(self, l2: float = 1.0, *, standardize: bool = True, form: Form = "auto") -> None:
        self.l2 = l2
        self.standardize = standardize
        self.form = form

    def fit(self, X: Any, y: Any) -> RidgeProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and l2 < 0."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        path = _fit_path(X, y, (self.l2,), self.standardize, self.form)
        return self._take(path, self.l2)

    def _take(self, path: RidgePath, l2: float) -> RidgeProbe:
        self.classes_ = path.classes
        self.mean_, self.scale_ = path.scaling.mean, path.scaling.scale
        self.coef_ = path.decomposition.coefficients(l2).T
        self.intercept_ = path.intercept
        self.n_features_in_ = len(self.mean_)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, k], or [n] for two classes (positive for the second), before any argmax."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: np.ndarray = Scaling(self.mean_, self.scale_).apply(X) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score, [n]."""
        scores = self.decision_function(X)
        predicted: np.ndarray = self.classes_[_argmax(scores if scores.ndim == 2 else scores[:, None])]
        return predicted


@dataclass(frozen=True)
class RidgePath:
    """Ridge classifiers of one training set for every penalty `l2` [m], with their leave-one-out predictions.

    Leave-one-out is exact for the scaling of the whole training set: each image is left out of the regression
    and of the intercept, not of the standard deviations. `labels` [n] index `classes`."""

    l2: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    scaling: Scaling
    standardize: bool
    decomposition: Decomposition
    intercept: np.ndarray

    def probe(self, l2: float) -> RidgeProbe:
        """The fitted classifier for one penalty, on the path or off it."""
        return RidgeProbe(l2, standardize=self.standardize)._take(self, l2)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, images] of new images `X` [images, p], for every penalty."""
        projected = self.scaling.apply(np.asarray(X, dtype=np.float64)) @ self.decomposition.basis
        scores = (projected @ self.decomposition.solved(l2) + self.intercept for l2 in self.l2)
        return np.stack([self.classes[_argmax(s)] for s in scores])

    def leave_one_out_scores(self, l2: float) -> np.ndarray:
        """Scores [n, k] of each training image by the fit to all others: t_i - r_i / (1 - h_i).

        k is 1 for two classes, as in `RidgeProbe.coef_`."""
        parts, targets = self.decomposition, _targets(self.labels, len(self.classes))
        leverage = 1 / len(self.labels) + parts.leverage @ (1 / (parts.eigenvalues + l2))
        residuals = targets - parts.fitted @ parts.solved(l2) - self.intercept
        scores: np.ndarray = targets - residuals / (1 - leverage)[:, None]
        return scores

    def leave_one_out_accuracy(self) -> np.ndarray:
        """Share of training images that the fit to all others gets right, for every penalty [m]."""
        return np.array([(_argmax(self.leave_one_out_scores(l2)) == self.labels).mean() for l2 in self.l2])

    def best_l2(self) -> float:
        """The penalty with the highest leave-one-out accuracy; of equals the largest, the simplest model."""
        accuracy = self.leave_one_out_accuracy()
        return float(self.l2[accuracy == accuracy.max()].max())


def ridge_path(X: Any, y: Any, l2: Sequence[float] | np.ndarray, *, standardize: bool = True, form: Form = "auto") -> RidgePath:
    """Ridge classifiers for features `X` [n, p] and classes `y` [n], for every penalty of `l2` at once.

    Raises MeasureError if a penalty is not positive (an interpolating fit has no leave-one-out residual) or
    there is one class, and ValueError for input that scikit-learn refuses."""
    penalties = np.asarray(l2, dtype=np.float64)
    if penalties.ndim != 1 or len(penalties) == 0 or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise MeasureError(f"l2 must be a list of positive numbers, got {l2}")
    X, y = validate_data(RidgeProbe(), X, y, dtype=np.float64)
    return _fit_path(X, y, penalties, standardize, form)


def default_l2(n: int) -> np.ndarray:
    """15 penalties, two a decade from 1e-4 n to 1e3 n, because Z'Z of standardised features grows with n."""
    return n * np.logspace(-4, 3, 15)


def _fit_path(X: np.ndarray, y: np.ndarray, l2: Any, standardize: bool, form: Form) -> RidgePath:
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise MeasureError(f"a probe needs at least two classes, but there is one class: {classes[0]}")
    if not (np.asarray(l2) >= 0).all():
        raise MeasureError(f"l2 must not be negative, got {l2}")
    scaling, targets = Scaling.of(X, standardize), _targets(labels, len(classes))
    intercept = targets.mean(axis=0)
    decomposition = Decomposition.of(scaling.apply(X), targets - intercept, form)
    penalties = np.asarray(l2, dtype=np.float64)
    return RidgePath(penalties, classes, labels, scaling, standardize, decomposition, intercept)


def _targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """+1 for the class and -1 elsewhere [n, k]; one column for two classes, which mirror each other."""
    hot = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    return hot[:, 1:] if classes == 2 else hot


def _argmax(scores: np.ndarray) -> np.ndarray:
    """Class indices [...] of scores [..., k]; a single column is positive for class 1."""
    if scores.shape[-1] == 1:
        return (scores[..., 0] > 0).astype(np.intp)
    best: np.ndarray = scores.argmax(axis=-1)
    return best
