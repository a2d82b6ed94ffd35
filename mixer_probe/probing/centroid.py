"""Nearest class mean: the class whose mean over the training images is nearest, by Euclidean distance or by cosine.

Leaving an image out changes only the mean of its own class, to m + (m - x) / (N - 1), so that leave-one-out is exact in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import check_choice, checked
from mixer_probe.linear.classifier import check_two, decided_class

Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class CentroidPath:
    """The nearest-mean classifier of one training set: a `ProbePath` with a single value, NaN, since nothing is chosen.

    `means` [K, p] of the classes `classes` [K], of `counts` [K] images each; features are scaled by `scale` [p] around `origin`
    [p] first, the scale of a constant column is infinite. `train` are the scaled training images and their class indices."""

    classes: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    metric: Metric
    train: tuple[np.ndarray, np.ndarray] = field(repr=False)

    @property
    def name(self) -> str:
        """Empty: there is nothing to choose."""
        return ""

    @property
    def values(self) -> np.ndarray:
        """One NaN."""
        return np.array([np.nan])

    def scores(self, X: Any) -> np.ndarray:
        """Scores [1, n, K] of new images `X` [n, p]: minus half the squared distance up to a constant an image, or the cosine."""
        return _scores(self._scaled(X), self.means, self.metric)[None]

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [1, n] of new images `X` [n, p]."""
        return np.asarray(self.classes[self.scores(X).argmax(axis=-1)])

    def left_out_accuracy(self) -> np.ndarray:
        """Share [1] of training images whose nearest mean, of means without them, is that of their class.

        The only image of a class has no other to be near, and counts as wrong."""
        return np.array([(self.leave_one_out_scores().argmax(axis=1) == self.train[1]).mean()])

    def leave_one_out_scores(self) -> np.ndarray:
        """Scores [n, K] of each training image by means without it; -inf for a class that it alone made up."""
        Z, labels = self.train
        scores, own = _scores(Z, self.means, self.metric), self.counts[labels] - 1
        mean = self.means[labels]
        moved = mean + (mean - Z) / np.maximum(own, 1)[:, None]
        scores[np.arange(len(Z)), labels] = np.where(own > 0, _row_scores(Z, moved, self.metric), -np.inf)
        return scores

    def _scaled(self, X: Any) -> np.ndarray:
        return np.asarray((np.asarray(X, dtype=np.float64) - self.origin) / self.scale)


def _scores(Z: np.ndarray, means: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores [n, K] of images `Z` [n, p] for `means` [K, p]."""
    if metric == "cosine":
        return np.asarray(_unit(Z) @ _unit(means).T)
    return np.asarray(Z @ means.T - np.square(means).sum(axis=1) / 2)


def _row_scores(Z: np.ndarray, means: np.ndarray, metric: Metric) -> np.ndarray:
    """As `_scores`, [n], for a mean of its own for every image [n, p]."""
    if metric == "cosine":
        return np.asarray((_unit(Z) * _unit(means)).sum(axis=1))
    return np.asarray((Z * means).sum(axis=1) - np.square(means).sum(axis=1) / 2)


def _unit(X: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(norm > 0, norm, 1))


@checked(MeasureError)
def centroid_path(X: Any, y: Any, values: Any = None, *, metric: Metric = "euclidean", standardize: bool = False) -> CentroidPath:
    """The nearest-mean classifier of features `X` [n, p] and classes `y` [n].

    `standardize` scales every column to deviation 1 first, which makes Euclidean distance indifferent to units.

    Raises MeasureError for `values`, since there are none to choose from, an unknown metric and one class; ValueError for
    input that scikit-learn refuses."""
    if values is not None:
        raise MeasureError("a nearest-mean probe has nothing to choose: leave values out")
    X, y = _checked(CentroidProbe(), X, y)
    return _path(X, y, metric, standardize)


def _checked(probe: CentroidProbe, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = validate_data(probe, X, y, dtype=np.float64)
    check_classification_targets(y)
    check_two(np.unique(y))
    return X, y


def _path(X: np.ndarray, y: np.ndarray, metric: Metric, standardize: bool) -> CentroidPath:
    check_choice("metric", metric, get_args(Metric), MeasureError)
    classes, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
    # A common origin changes no distance, but keeps digits; it does change angles.
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    constant = deviation <= 10 * np.finfo(float).eps * np.abs(mean)
    origin = np.zeros_like(mean) if metric == "cosine" else mean
    scale = np.where(constant & standardize, np.inf, deviation if standardize else 1.0)
    Z = (X - origin) / scale
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(Z[np.argsort(labels, kind="stable")], starts) / counts[:, None]
    return CentroidPath(classes, means, counts, origin, scale, metric, (Z, labels))


class CentroidProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Nearest class mean, by Euclidean distance or by cosine; a scikit-learn estimator.

    After `fit`: `classes_` [K], `means_` [K, p] of the scaled features, `origin_` and `scale_` [p], `n_features_in_`."""

    def __init__(self, metric: Metric = "euclidean", *, standardize: bool = False) -> None:
        self.metric = metric
        self.standardize = standardize

    def fit(self, X: Any, y: Any) -> CentroidProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and an unknown metric."""
        X, y = _checked(self, X, y)
        path = _path(X, y, self.metric, self.standardize)
        self.classes_, self.means_ = path.classes, path.means
        self.origin_, self.scale_ = path.origin, path.scale
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, K], or for two classes [n]: how much nearer the second is."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = _scores((X - self.origin_) / self.scale_, self.means_, self.metric)
        return np.asarray(scores[:, 1] - scores[:, 0]) if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class with the nearest mean, [n]."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[decided_class(scores if scores.ndim == 2 else scores[:, None])])
