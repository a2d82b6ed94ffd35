"""The kinds of probes by name; each module is imported when its probe is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.linear.classifier import ProbePath

Values = Sequence[float] | np.ndarray | None


class Fitter(Protocol):
    """Fits a whole path to features `X` [n, p] and classes `y` [n]; `values` None takes the path that is usual for it."""

    def __call__(self, X: Any, y: Any, values: Values = None) -> ProbePath:
        """The path fitted to `X` and `y`. Raises what the kind of probe raises."""


def _ridge(X: Any, y: Any, values: Values = None) -> ProbePath:
    from mixer_probe.linear.ridge import default_l2
    from mixer_probe.linear.ridge_probe import ridge_path

    return ridge_path(X, y, default_l2(len(y)) if values is None else values)


def _logistic(X: Any, y: Any, values: Values = None) -> ProbePath:
    from mixer_probe.linear.logistic import logistic_path

    return logistic_path(X, y, values)


def _knn(X: Any, y: Any, values: Values = None) -> ProbePath:
    from mixer_probe.probing.knn import knn_path

    return knn_path(X, y, values)


def _centroid(X: Any, y: Any, values: Values = None) -> ProbePath:
    from mixer_probe.probing.centroid import centroid_path

    return centroid_path(X, y, values)


FITTERS: dict[str, Fitter] = {"ridge": _ridge, "logistic": _logistic, "knn": _knn, "centroid": _centroid}
# What the path of each runs over; nothing where there is nothing to choose.
PATHS = {"ridge": "l2", "logistic": "l2", "knn": "k", "centroid": ""}
# Their scores are log-probabilities.
PROBABILISTIC = ("logistic", "knn")
# What a result says about how its numbers were made.
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
