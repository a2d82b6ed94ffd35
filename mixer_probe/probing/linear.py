"""What linear classifiers of this package share: answers from weights of scaled features."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mixer_probe.probing.path import decided_class


class LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted linear classifier of features scaled by `mean_` and `scale_` [p], with `classes_` [K], `coef_` [k, p] and
    `intercept_` [k]; k is 1 for two classes."""

    classes_: np.ndarray
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

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score, [n]."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[decided_class(scores if scores.ndim == 2 else scores[:, None])])
