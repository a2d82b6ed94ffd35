"""The kinds of probes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.linear.classifier import ProbePath
from mixer_probe.linear.logistic import logistic_path
from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.probing.centroid import centroid_path
from mixer_probe.probing.knn import knn_path

Values = Sequence[float] | np.ndarray | None


class Fitter(Protocol):
    """Fits a whole path to features `X` [n, p] and classes `y` [n]; `values` None takes the
    method's default path."""

    def __call__(self, X: Any, y: Any, values: Values = None, /) -> ProbePath:
        """The path fitted to `X` and `y`. Raises what the kind of probe raises."""


FITTERS: dict[str, Fitter] = {
    "ridge": ridge_path,
    "logistic": logistic_path,
    "knn": knn_path,
    "centroid": centroid_path,
}
# The hyperparameter of each path; empty where there is none.
PATHS = {"ridge": "l2", "logistic": "l2", "knn": "k", "centroid": ""}
# Methods whose scores are log-probabilities.
PROBABILISTIC = ("logistic", "knn")
# The estimator and the choice of its hyperparameter, as results state them.
ESTIMATORS = {
    "ridge": "ridge, l2 by leave-one-out accuracy",
    "logistic": "multinomial logistic regression, l2 by accuracy on left-out training images",
    "knn": "nearest neighbours by cosine, k by leave-one-out accuracy",
    "centroid": "nearest class mean",
}


def find_fitter(method: str) -> Fitter:
    """The fitter called `method`. Raises MeasureError that lists close names."""
    if method not in FITTERS:
        raise MeasureError(f"there is no probe '{method}'; {closest(method, FITTERS)}")
    return FITTERS[method]
