"""k nearest neighbours by cosine with temperature-weighted votes (Wu et al. 2018, section 3.4; Caron et al. 2021).

The k training images most similar to an image vote for their class with weights exp(s / T), s the cosine similarity. Of training
images that are equally similar the first comes first. Similarities are made for blocks of images, never for all pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import check_two, last_best
from mixer_probe.linear.stratification import stratified

DEFAULT_K = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
# Training images whose neighbours are looked for to choose k, as for ridge probes: accuracy on so many of more chooses as well.
LEFT_OUT = 5000

# Similarities of one block.
_BLOCK = 2**24
# Similarities that differ by less are ties: float64 rounding of products of unit vectors.
_TIE = 1e-12


@dataclass(frozen=True)
class KNNPath:
    """Nearest-neighbour classifiers of one training set for every number of neighbours `k` [m], ascending; a `ProbePath`.

    `unit` [n, p] are the training features minus `mean` [p] with norm 1 (0 for a row of zeros, which is similar to nothing);
    `labels` [n] index `classes`; the images `left` [s] are classified to choose k."""

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
        """Logarithms [m, n, K] of each class's share of the votes for new images `X` [n, p]; -inf without a vote."""
        unit = _unit(X, torch.from_numpy(self.mean))
        return np.concatenate([self._votes(unit[rows], None) for rows in self._blocks(len(unit))], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]; of classes with as many votes the first."""
        return np.asarray(self.classes[_winner(self.scores(X))])

    def left_out_accuracy(self) -> np.ndarray:
        """Share [m] of the images `left` that their k nearest training images other than themselves get right."""
        right = np.zeros(len(self.k))
        for block in self._blocks(len(self.left)):
            rows = torch.from_numpy(self.left[block])
            right += (_winner(self._votes(self.unit[rows], rows)) == self.labels[rows].numpy()).sum(axis=1)
        return right / len(self.left)

    @checked(MeasureError)
    def neighbours(self, X: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and similarities [n, k] of the nearest training images of `X` [n, p], the nearest first."""
        unit = _unit(X, torch.from_numpy(self.mean))
        found = [self._nearest(unit[rows], None, k) for rows in self._blocks(len(unit))]
        return np.concatenate([part[0].numpy() for part in found]), np.concatenate([part[1].numpy() for part in found])

    def _blocks(self, n: int) -> Iterator[slice]:
        size = max(1, _BLOCK // len(self.unit))
        return (slice(start, start + size) for start in range(0, n, size))

    def _votes(self, unit: Tensor, rows: Tensor | None) -> np.ndarray:
        """Log shares of votes [m, b, K] for images [b, p]; `rows` [b] are left out, one of each."""
        indices, similarity = self._nearest(unit, rows, int(self.k[-1]))
        return self._shares(self.labels[indices], similarity)

    def _nearest(self, block: Tensor, rows: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Indices and similarities [b, k], the nearest first; `rows` are left out, one of each image."""
        similarity = block @ self.unit.T
        if rows is not None:
            similarity.scatter_(1, rows[:, None], -torch.inf)
        top, indices = similarity.topk(k, dim=1)
        bound = top[:, -1:] - _TIE
        # Only where more than k are as near as the last does the choice among ties need all of them.
        tied = ((similarity >= bound).sum(1) > k) | (top[:, :-1] - top[:, 1:] <= _TIE).any(1)
        if tied.any():
            top[tied], indices[tied] = _stable(similarity[tied], k)
        return indices, top

    def _shares(self, labels: Tensor, similarity: Tensor) -> np.ndarray:
        """Log shares of the votes [m, b, K] of neighbours [b, k] with these labels."""
        # Weights relative to the nearest one stay in range for any temperature.
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        votes = torch.zeros(len(labels), len(self.classes), dtype=torch.float64)
        out, before = [], 0
        for k in self.k.tolist():
            votes.scatter_add_(1, labels[:, before:k], weights[:, before:k])
            out.append((votes / votes.sum(1, keepdim=True)).log())
            before = k
        return np.asarray(torch.stack(out).numpy())


def _stable(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [b, n]; of equals, but for rounding, the first."""
    rounded = (similarity / _TIE / 4).round()
    order = rounded.argsort(dim=1, descending=True, stable=True)[:, :k]
    return similarity.gather(1, order), order


def _winner(scores: np.ndarray) -> np.ndarray:
    """The first class [m, n] with as many votes as any, but for rounding."""
    return np.asarray((scores >= scores.max(axis=-1, keepdims=True) - 1e-9).argmax(axis=-1))


def _unit(X: Any, mean: Tensor) -> Tensor:
    """Rows of `X` [n, p] minus `mean`, with norm 1, in float64 on the CPU; rows of zeros stay zeros."""
    array = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    values = torch.from_numpy(np.array(array, dtype=np.float64)).sub_(mean)
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
    """Nearest-neighbour classifiers of features `X` [n, p] and classes `y` [n], for every number of neighbours in `k`.

    `k` None takes those of `DEFAULT_K` that are less than n. `centre` takes the mean of the training images off first, since
    features whose mean is far from zero are all alike by cosine. At most `left_out` of the images, a stratified draw, are
    classified without themselves to choose k.

    Raises MeasureError unless every k is a whole number from 1 to n - 1 and the temperature positive, and for one class;
    ValueError for input that scikit-learn refuses."""
    X, y = _checked(KNNProbe(), X, y)
    return _path(X, y, _numbers(k, len(y) - 1), temperature, centre, left_out)


def _numbers(k: Any, most: int) -> np.ndarray:
    """The path of k, ascending and each once."""
    if k is None:
        return np.array([value for value in DEFAULT_K if value <= most])
    given = np.atleast_1d(np.asarray(k, dtype=np.float64))
    if given.ndim != 1 or len(given) == 0 or not ((given == given.round()) & (given >= 1) & (given <= most)).all():
        raise MeasureError(f"k must be whole numbers from 1 to {most}, the training images but one, got {k}")
    return np.unique(given.astype(np.int64))


def _checked(probe: KNNProbe, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = validate_data(probe, X, y, dtype=np.float64)
    check_classification_targets(y)
    check_two(np.unique(y))
    return X, y


def _path(X: np.ndarray, y: np.ndarray, k: np.ndarray, temperature: float, centre: bool, left_out: int = LEFT_OUT) -> KNNPath:
    if not temperature > 0:
        raise MeasureError(f"temperature={temperature}: it must be positive, {TEMPERATURE} is usual")
    classes, labels = np.unique(y, return_inverse=True)
    mean = X.mean(axis=0) if centre else np.zeros(X.shape[1])
    left = stratified(y, left_out) if left_out < len(y) else np.arange(len(y))
    return KNNPath(k, classes, mean, _unit(X, torch.from_numpy(mean)), torch.from_numpy(labels), left, temperature)


class KNNProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """k nearest neighbours by cosine with votes exp(similarity / `temperature`); a scikit-learn estimator.

    A list of `k`, or None for `DEFAULT_K`, is a path: the k with the highest leave-one-out accuracy is taken, of equals the
    largest. A single k is cut to the number of training images. `centre` takes the training mean off first.

    After `fit`: `classes_` [K], `k_`, `path_` (the `KNNPath`), `n_features_in_`."""

    def __init__(self, k: int | Sequence[int] | None = 20, *, temperature: float = TEMPERATURE, centre: bool = False) -> None:
        self.k = k
        self.temperature = temperature
        self.centre = centre

    def fit(self, X: Any, y: Any) -> KNNProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, k and temperatures below their
        range."""
        X, y = _checked(self, X, y)
        path = _path(X, y, self._numbers(len(y)), self.temperature, self.centre)
        best = int(last_best(path.left_out_accuracy())) if len(path.k) > 1 else 0
        self.path_ = _path_of_one(path, best)
        self.k_ = int(path.k[best])
        self.classes_ = path.classes
        return self

    def _numbers(self, n: int) -> np.ndarray:
        if self.k is None or np.ndim(self.k):
            return _numbers(self.k, n - 1)
        return _numbers(min(self.k, n) if self.k > 0 else self.k, n)  # type: ignore[type-var, operator]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Each class's share of the votes, [n, K]."""
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the shares, [n, K]; -inf without a vote."""
        check_is_fitted(self)
        return np.asarray(self.path_.scores(validate_data(self, X, dtype=np.float64, reset=False))[0])

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest share, [n]; of equals the first."""
        shares = self.predict_log_proba(X)
        return np.asarray(self.classes_[_winner(shares)])


def _path_of_one(path: KNNPath, i: int) -> KNNPath:
    return replace(path, k=path.k[i : i + 1])
