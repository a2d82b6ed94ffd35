"""What every kind of probe is to the rest: classifiers of one training set, for all values of its hyper-parameter at once."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ProbePath(Protocol):
    """Fitted classifiers of one training set along a path of m values.

    The values ascend towards the simpler model (a larger penalty, more neighbours), so that of equals the last is taken."""

    @property
    def name(self) -> str:
        """What the path runs over, as in tables: "l2", "k", ..."""

    @property
    def values(self) -> np.ndarray:
        """The path [m], float64, ascending; one NaN for a probe that has nothing to choose."""

    @property
    def classes(self) -> np.ndarray:
        """The classes [K] of the training set, sorted."""

    def scores(self, X: Any) -> np.ndarray:
        """Scores [m, n, K] of new images `X` [n, p]: log-probabilities where the model has them."""

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]."""

    def left_out_accuracy(self) -> np.ndarray:
        """Share [m] of training images that are classified right while left out of the fit: what chooses among the values."""


def choose(accuracy: np.ndarray) -> int:
    """Index of the highest accuracy [m]; of equals the last, the simplest model."""
    return int(np.flatnonzero(accuracy == accuracy.max())[-1])


def decided_class(scores: np.ndarray) -> np.ndarray:
    """The class index of the highest score of [..., k]; a single column is positive for class 1."""
    return np.asarray((scores[..., 0] > 0).astype(np.intp) if scores.shape[-1] == 1 else scores.argmax(axis=-1))
