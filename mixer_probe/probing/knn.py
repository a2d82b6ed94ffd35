"""k nearest neighbours by cosine with temperature-weighted votes (Wu et al. 2018, section 3.4;
Caron et al. 2021).

The k training images most similar to an image vote for their class with weights exp(s / T), s the
cosine similarity. Of training images that are equally similar the first comes first, and one search
serves every k and leave-one-out, which scikit-learn's KNeighborsClassifier does not offer.
Similarities are computed for blocks of images, never for all pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import at_once, slices
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import checked_classes, last_best
from mixer_probe.linear.stratification import stratified

DEFAULT_K = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
# Training images by which k is chosen, as for ridge probes: accuracy on so many of more chooses as
# well.
LEFT_OUT = 5000

# Similarities that differ by less are ties: float64 rounding of products of unit vectors.
_TIE = 1e-12


@dataclass(frozen=True)
class KNNPath:
    """Nearest-neighbour classifiers of one training set for every number of neighbours `k` [m],
    ascending; a `ProbePath`.

    `unit` [n, p] are the training features minus `mean` [p] with norm 1 (0 for a row of zeros,
    which is similar to nothing); `labels` [n] index `classes`; the images `left` [s] are classified
    to choose k."""

    k: np.ndarray
    classes: np.ndarray
    mean: np.ndarray
    unit: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    left: np.ndarray = field(repr=False)
    temperature: float

    @property
    def name(self) -> str:
        """ "k"."""
        return "k"

    @property
    def values(self) -> np.ndarray:
        """The numbers of neighbours, as float64."""
        return self.k.astype(np.float64)

    def scores(self, X: Any) -> np.ndarray:
        """Logarithms [m, n, K] of the fraction of the votes per class for new images `X` [n, p];
        -inf without a vote."""
        unit = _unit(X, self.mean)
        return np.concatenate(
            [self._votes(*self._nearest(unit[rows])) for rows in self._blocks(len(unit))], axis=1
        )

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]; of classes with as many votes the
        first."""
        return np.asarray(self.classes[_winner(self.scores(X))])

    def left_out_accuracy(self) -> np.ndarray:
        """Accuracy [m] on the images `left` of their k nearest training images other than
        themselves."""
        right = np.zeros(len(self.k))
        for block in self._blocks(len(self.left)):
            rows = torch.from_numpy(self.left[block])
            votes = self._votes(*self._nearest(self.unit[rows], rows))
            right += (_winner(votes) == self.labels[rows].numpy()).sum(axis=1)
        return right / len(self.left)

    @checked(MeasureError)
    def neighbours(self, X: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and similarities [n, k] of the nearest training images of `X` [n, p], the nearest
        first."""
        unit = _unit(X, self.mean)
        found = [self._nearest(unit[rows], k=k) for rows in self._blocks(len(unit))]
        return np.concatenate([part[0].numpy() for part in found]), np.concatenate(
            [part[1].numpy() for part in found]
        )

    def _blocks(self, n: int) -> Iterator[slice]:
        return slices(n, at_once(8 * len(self.unit)))

    def _nearest(
        self, block: Tensor, rows: Tensor | None = None, k: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices and similarities [b, k] of the nearest training images; `rows` are left out, one
        of each image."""
        k = int(self.k[-1]) if k is None else k
        similarity = block @ self.unit.T
        if rows is not None:
            similarity.scatter_(1, rows[:, None], -torch.inf)
        top, indices = similarity.topk(k, dim=1)
        # Only where more than k are as near as the last does the choice among ties need all of
        # them.
        tied = ((similarity >= top[:, -1:] - _TIE).sum(1) > k) | (
            top[:, :-1] - top[:, 1:] <= _TIE
        ).any(1)
        if tied.any():
            # The k largest; of equals, but for rounding, the first.
            every = similarity[tied]
            order = (every / _TIE / 4).round().argsort(dim=1, descending=True, stable=True)[:, :k]
            top[tied], indices[tied] = every.gather(1, order), order
        return indices, top

    def _votes(self, indices: Tensor, similarity: Tensor) -> np.ndarray:
        """Logarithms [m, b, K] of the fraction of the votes of neighbours [b, k] per class."""
        # Weights relative to the nearest one stay in range for any temperature.
        labels, weights = (
            self.labels[indices],
            ((similarity - similarity[:, :1]) / self.temperature).exp(),
        )
        votes = torch.zeros(len(labels), len(self.classes), dtype=torch.float64)
        out, before = [], 0
        for k in self.k.tolist():
            votes.scatter_add_(1, labels[:, before:k], weights[:, before:k])
            out.append((votes / votes.sum(1, keepdim=True)).log())
            before = k
        return np.asarray(torch.stack(out).numpy())


def _winner(scores: np.ndarray) -> np.ndarray:
    """The first class [m, n] with as many votes as any, but for rounding."""
    return np.asarray((scores >= scores.max(axis=-1, keepdims=True) - 1e-9).argmax(axis=-1))


def _unit(X: Any, mean: np.ndarray) -> Tensor:
    """Rows of `X` [n, p] minus `mean`, with norm 1, in float64 on the CPU; rows of zeros stay
    zeros."""
    array = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    values = torch.from_numpy(np.array(array, dtype=np.float64)).sub_(torch.from_numpy(mean))
    # Largest entry 1 first, so that squares stay in range.
    top = values.abs().amax(1, keepdim=True)
    values /= torch.where(top > 0, top, 1.0)
    norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values.div_(torch.where(norm > 0, norm, 1.0))


@checked(MeasureError)
def knn_path(
    X: Any,
    y: Any,
    k: Sequence[float] | np.ndarray | None = None,
    *,
    temperature: float = TEMPERATURE,
    centre: bool = False,
    left_out: int = LEFT_OUT,
) -> KNNPath:
    """Nearest-neighbour classifiers of features `X` [n, p] and classes `y` [n], for every number of
    neighbours in `k`.

    `k` None takes those of `DEFAULT_K` that are less than n. `centre` subtracts the mean of the
    training images first, since features whose mean is far from zero are all alike by cosine. At
    most `left_out` of the images, a stratified draw, are classified without themselves to choose k.

    Raises MeasureError unless every k is a whole number from 1 to n - 1 and the temperature
    positive, and for one class; ValueError for input that scikit-learn refuses."""
    X, y = checked_classes(KNNProbe(), X, y)
    return _path(X, y, _numbers(k, len(y) - 1), temperature, centre, left_out)


def _numbers(k: Any, most: int) -> np.ndarray:
    """The path of k, ascending and each once."""
    if k is None:
        return np.array([value for value in DEFAULT_K if value <= most])
    given = np.atleast_1d(np.asarray(k, dtype=np.float64))
    if (
        given.ndim != 1
        or len(given) == 0
        or not ((given == given.round()) & (given >= 1) & (given <= most)).all()
    ):
        raise MeasureError(
            f"k must be whole numbers from 1 to {most}, the training images but one, got {k}"
        )
    return np.unique(given.astype(np.int64))


def _path(
    X: np.ndarray,
    y: np.ndarray,
    k: np.ndarray,
    temperature: float,
    centre: bool,
    left_out: int = LEFT_OUT,
) -> KNNPath:
    if not temperature > 0:
        raise MeasureError(
            f"temperature={temperature}: it must be positive, {TEMPERATURE} is usual"
        )
    classes, labels = np.unique(y, return_inverse=True)
    mean = X.mean(axis=0) if centre else np.zeros(X.shape[1])
    left = stratified(y, left_out) if left_out < len(y) else np.arange(len(y))
    return KNNPath(k, classes, mean, _unit(X, mean), torch.from_numpy(labels), left, temperature)


class KNNProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """k nearest neighbours by cosine with votes exp(similarity / `temperature`); a scikit-learn
    estimator.

    A list of `k`, or None for `DEFAULT_K`, is a path: the k with the highest leave-one-out accuracy
    is chosen, of equals the largest. A single k is cut to the number of training images. `centre`
    subtracts the training mean first.

    After `fit`: `classes_` [K], `k_`, `path_` (the `KNNPath`), `n_features_in_`."""

    def __init__(
        self,
        k: int | Sequence[int] | None = 20,
        *,
        temperature: float = TEMPERATURE,
        centre: bool = False,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.centre = centre

    def fit(self, X: Any, y: Any) -> KNNProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, k and
        temperatures below their range."""
        X, y = checked_classes(self, X, y)
        if self.k is None or np.ndim(self.k):
            k = _numbers(self.k, len(y) - 1)
        else:
            k = _numbers(min(self.k, len(y)) if self.k > 0 else self.k, len(y))  # type: ignore[type-var, operator]
        path = _path(X, y, k, self.temperature, self.centre)
        best = int(last_best(path.left_out_accuracy())) if len(k) > 1 else 0
        self.path_ = replace(path, k=k[best : best + 1])
        self.k_ = int(k[best])
        self.classes_ = path.classes
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Fraction of the votes per class, [n, K]."""
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the fractions, [n, K]; -inf without a vote."""
        check_is_fitted(self)
        return np.asarray(
            self.path_.scores(validate_data(self, X, dtype=np.float64, reset=False))[0]
        )

    def predict(self, X: Any) -> np.ndarray:
        """The class with the most votes, [n]; of equals the first."""
        scores = self.predict_log_proba(X)
        return np.asarray(self.classes_[_winner(scores)])
