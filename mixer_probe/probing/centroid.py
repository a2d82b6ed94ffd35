"""Nearest class mean: the class whose mean over the training images is nearest, by Euclidean
distance or by cosine.

Leaving an image out changes only the mean of its own class, to m + (m - x) / (N - 1), so that
leave-one-out is exact in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted, validate_data

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import check_choice, checked
from mixer_probe.linear.classifier import ScoreClassifier, checked_classes
from mixer_probe.linear.scaling import ColumnScaling, blocks

Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class CentroidPath:
    """The nearest-mean classifier of one training set: a `ProbePath` with a single value, NaN,
    since there is no hyperparameter.

    `means` [K, p] of the classes `classes` [K], of `counts` [K] images each; features are scaled by
    `scale` [p] around `origin` [p] first, the scale of a constant column is infinite. `train` are
    the features of the training images and their class indices."""

    classes: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    metric: Metric
    train: tuple[Any, np.ndarray] = field(repr=False)

    @property
    def name(self) -> str:
        """Empty: there is no hyperparameter."""
        return ""

    @property
    def values(self) -> np.ndarray:
        """One NaN."""
        return np.array([np.nan])

    def scores(self, X: Any) -> np.ndarray:
        """Scores [1, n, K] of new images `X` [n, p]: the cosine, or minus half the squared distance
        up to a constant."""
        return _scores(self._scaled(X), self.means, self.metric)[None]

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [1, n] of new images `X` [n, p]."""
        return np.asarray(self.classes[self.scores(X).argmax(axis=-1)])

    def left_out_accuracy(self) -> np.ndarray:
        """Accuracy [1] on training images of the nearest of the means without them.

        The only image of a class has no other to be near, and counts as wrong."""
        X, labels = self.train
        found = (self._left_out(rows).argmax(axis=1) == labels[rows] for rows in blocks(*X.shape))
        return np.array([sum(int(right.sum()) for right in found) / len(labels)])

    def leave_one_out_scores(self) -> np.ndarray:
        """Scores [n, K] of each training image by means without it; -inf for a class without other
        images."""
        return np.concatenate([self._left_out(rows) for rows in blocks(*self.train[0].shape)])

    def _scaled(self, X: Any) -> np.ndarray:
        return np.asarray((np.asarray(X, dtype=np.float64) - self.origin) / self.scale)

    def _left_out(self, rows: slice) -> np.ndarray:
        Z, labels = self._scaled(self.train[0][rows]), self.train[1][rows]
        scores, others = _scores(Z, self.means, self.metric), self.counts[labels] - 1
        means = self.means[labels]
        means = means + (means - Z) / np.maximum(others, 1)[:, None]
        if self.metric == "cosine":
            own = (normalize(Z) * normalize(means)).sum(axis=1)
        else:
            own = (Z * means).sum(axis=1) - np.square(means).sum(axis=1) / 2
        scores[np.arange(len(Z)), labels] = np.where(others > 0, own, -np.inf)
        return scores


def _scores(Z: np.ndarray, means: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores [n, K] of images `Z` [n, p] for `means` [K, p]."""
    if metric == "cosine":
        return np.asarray(normalize(Z) @ normalize(means).T)
    return np.asarray(Z @ means.T - np.square(means).sum(axis=1) / 2)


@checked(MeasureError)
def centroid_path(
    X: Any, y: Any, values: Any = None, *, metric: Metric = "euclidean", standardize: bool = False
) -> CentroidPath:
    """The nearest-mean classifier of features `X` [n, p] and classes `y` [n].

    `standardize` scales every column to deviation 1 first, which makes Euclidean distance
    indifferent to units.

    Raises MeasureError for `values`, since there is no hyperparameter, an unknown metric and one
    class; ValueError for input that scikit-learn refuses."""
    if values is not None:
        raise MeasureError("a nearest-mean probe has nothing to choose: leave values out")
    X, y = checked_classes(CentroidProbe(), X, y, by_rows=True)
    return _path(X, y, metric, standardize)


def _path(X: Any, y: np.ndarray, metric: Metric, standardize: bool) -> CentroidPath:
    check_choice("metric", metric, get_args(Metric), MeasureError)
    classes, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
    scaling = ColumnScaling.of_columns(X)
    # A common origin changes no distance, but keeps digits; it does change angles.
    origin = scaling.mean.numpy() * (metric != "cosine")
    scale = scaling.scale.numpy() if standardize else np.ones_like(origin)
    means = np.zeros((len(classes), X.shape[1]))
    path = CentroidPath(classes, means, counts, origin, scale, metric, (X, labels))
    for rows in blocks(*X.shape):
        np.add.at(means, labels[rows], path._scaled(X[rows]))
    means /= counts[:, None]
    return path


class CentroidProbe(ScoreClassifier):
    """Nearest class mean, by Euclidean distance or by cosine; a scikit-learn estimator.

    After `fit`: `classes_` [K], `means_` [K, p] of the scaled features, `origin_` and `scale_` [p],
    `n_features_in_`."""

    def __init__(self, metric: Metric = "euclidean", *, standardize: bool = False) -> None:
        self.metric = metric
        self.standardize = standardize

    def fit(self, X: Any, y: Any) -> CentroidProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and an
        unknown metric."""
        path = _path(*checked_classes(self, X, y), self.metric, self.standardize)
        self.classes_, self.means_ = path.classes, path.means
        self.origin_, self.scale_ = path.origin, path.scale
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, K], or for two classes [n]: how much nearer the second is."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = _scores((X - self.origin_) / self.scale_, self.means_, self.metric)
        return np.asarray(scores[:, 1] - scores[:, 0]) if len(self.classes_) == 2 else scores
