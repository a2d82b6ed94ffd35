"""What linear classifiers have in common: the path of a hyperparameter, the choice from it, and
decisions from scores."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.rows import Rows


@runtime_checkable
class ProbePath(Protocol):
    """Fitted classifiers of one training set for m values of a hyperparameter.

    The values ascend towards the simpler model (a larger penalty, more neighbours); ties go to the
    last."""

    @property
    def name(self) -> str:
        """The hyperparameter, as in tables: "l2", "k", ..."""

    @property
    def values(self) -> np.ndarray:
        """The path [m], float64, ascending; one NaN for a classifier without hyperparameter."""

    @property
    def classes(self) -> np.ndarray:
        """The classes [K] of the training set, sorted."""

    def scores(self, X: Any) -> np.ndarray:
        """Scores [m, n, K] of new images `X` [n, p]: log-probabilities where the model has them."""

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]."""

    def left_out_accuracy(self) -> np.ndarray:
        """Accuracy [m] on training images left out of the fit, by which a value is chosen."""


class PenaltyPath:
    """Mixin of paths of the penalty `l2` [m]."""

    l2: np.ndarray

    @property
    def name(self) -> str:
        """ "l2"."""
        return "l2"

    @property
    def values(self) -> np.ndarray:
        """The penalties."""
        return self.l2


def predict_one(path: ProbePath, X: Any, i: int) -> np.ndarray:
    """Predicted classes [n] of images `X` [n, p] by the classifier with the i-th value of a
    path."""
    found = np.empty(len(X), dtype=path.classes.dtype)
    for rows in slices(len(X), ROWS):
        found[rows] = path.predict(X[rows])[i]
    return found


def last_best(scores: np.ndarray) -> np.ndarray:
    """Index [...] of the highest of `scores` [m, ...] along the path; of equals the last, the
    simplest model."""
    best: np.ndarray = len(scores) - 1 - np.argmax(scores[::-1], axis=0)
    return best


def decided_class(scores: np.ndarray) -> np.ndarray:
    """The class index [...] of the highest score of [..., K]; a single column is positive for class
    1."""
    return np.asarray(
        (scores[..., 0] > 0).astype(np.intp) if scores.shape[-1] == 1 else scores.argmax(axis=-1)
    )


def check_two(classes: np.ndarray) -> None:
    """Raise MeasureError unless there are two classes or more."""
    if len(classes) < 2:
        found = f"there is one class: {classes[0]}" if len(classes) else "there are none"
        raise MeasureError(f"a probe needs at least two classes, but {found}")


def checked_classes(
    estimator: BaseEstimator, X: Any, y: Any, dtype: Any = np.float64, by_rows: bool = False
) -> tuple[Any, np.ndarray]:
    """Features [n, p] and classes [n] as scikit-learn checks them; `by_rows` leaves `Rows` as they
    are, which are read whole otherwise. Raises its ValueError, and MeasureError for one class."""
    if isinstance(X, Rows) and by_rows:
        y = np.asarray(y)
    else:
        X, y = validate_data(estimator, np.asarray(X) if isinstance(X, Rows) else X, y, dtype=dtype)
    check_classification_targets(y)
    check_two(np.unique(y))
    return X, y


class ScoreClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier with `classes_` [K] that predicts the class of the highest
    `decision_function`."""

    classes_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, K], or [n] for two classes (positive for the second)."""
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score, [n]."""
        scores = self.decision_function(X)
        return np.asarray(
            self.classes_[decided_class(scores if scores.ndim == 2 else scores[:, None])]
        )


class LinearClassifier(ScoreClassifier):
    """A fitted linear classifier of features scaled by `mean_` and `scale_` [p], with `classes_`
    [K], `coef_` [k, p] and `intercept_` [k]; k is 1 for two classes."""

    mean_: np.ndarray
    scale_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores or logits [n, K], or [n] for two classes (positive for the second)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: np.ndarray = (X - self.mean_) / self.scale_ @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores
